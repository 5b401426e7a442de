"""`cofuse gate` on real models and files: its exit status, its folder, and what it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import Result
from tasks.tiny import bert, opinion_task
from typer.testing import CliRunner

from cofuse.checkpoint import Memory
from cofuse.cli.app import application
from cofuse.store import Store

from .test_newcomer import cofuse


def changed(body: Memory, by: float) -> Memory:
    """A body whose every weight is moved at random, by a share of its deviation."""
    random = torch.Generator().manual_seed(1)
    moved = {}
    for name in body.names():
        t = body.read(name)
        floats = t.is_floating_point() and t.numel() > 1
        scale = t.std() if floats and float(t.std()) > 0 else 1.0
        moved[name] = t + by * scale * torch.randn(t.shape, generator=random) if floats else t
    return Memory(moved, files=body.files)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gate")
    body = bert(3)
    body.save(folder / "old")
    changed(body, 0.0).save(folder / "same")
    changed(body, 1.5).save(folder / "broken")
    bert(3, hidden_size=32).save(folder / "wider")
    opinion_task(folder / "tasks" / "opinions", sizes=(80, 8, 700))
    (folder / "suite.yaml").write_text(
        "name: small\ntasks: [opinions]\n"
        "protocols: {oldhead: {examples: 60, probing: {precision: fp32, max_length: 16}}}\n"
    )
    return folder


def invoke(here: Path, *arguments: str) -> Result:
    """A command in this process, which has loaded torch already."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        patch.setenv("COLUMNS", "200")
        return CliRunner().invoke(application(arguments[0]), arguments, prog_name="cofuse")


def gate(here: Path, *arguments: str) -> Result:
    return invoke(here, "gate", *arguments)


def run(here: Path, new: str, *more: str) -> Result:
    return gate(here, "old", new, "--suite", "suite.yaml", "--tasks", "tasks", *more)


def test_the_same_model_passes(here: Path) -> None:
    ended = run(here, "same", "--out", "pass", "--json")
    assert ended.exit_code == 0, ended.stderr + ended.stdout
    said = json.loads(ended.stdout)
    assert (said["verdict"]["state"], said["verdict"]["step"]) == ("pass", "patch")
    (task,) = said["tasks"]
    assert (task["difference"]["mean"], task["negative"]["mean"], task["kl"]["mean"]) == (0, 0, 0)
    assert said == json.loads((here / "pass" / "summary.json").read_text(encoding="utf-8"))
    rows = said["rows"]
    assert [set(r) - {"content"} for r in rows] == [
        {"model", "commit", "suite", "task", "protocol", "metric", "mean", "low", "high", "n"}
    ] * 2
    assert all(r["low"] <= r["mean"] <= r["high"] for r in rows)


def test_a_broken_model_is_blocked_and_its_task_is_named(here: Path) -> None:
    ended = run(here, "broken", "--out", "block", "--set", "max_drop=5")
    assert ended.exit_code == 1, ended.stderr
    assert "Blocked (major version)" in ended.stdout
    assert "opinions: -" in ended.stdout
    assert "report: " in ended.stdout
    lines = [json.loads(line) for line in (here / "block" / "records.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["gate", "comparison", "verdict"]
    assert len({line["id"] for line in lines}) == 3
    assert "Blocked: a candidate on small" in (here / "block" / "report.html").read_text(encoding="utf-8")


def test_a_process_ends_with_the_verdict(here: Path) -> None:
    arguments = ("--suite", "suite.yaml", "--tasks", "tasks", "--set", "max_drop=5")
    ended = cofuse("gate", "old", "broken", *arguments, cwd=here)
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    assert (here / "runs" / "gate-small" / "report.html").exists()


def test_too_few_examples_are_undecided(here: Path) -> None:
    ended = run(here, "same", "--out", "undecided", "--set", "max_drop=0.2", "--set", "max_mean_drop=0.2")
    assert ended.exit_code == 3, ended.stderr
    assert "needs about" in ended.stdout


def test_rapid_blocks_with_less(here: Path) -> None:
    ended = run(here, "broken", "--out", "rapid", "--rapid", "--json", "--set", "max_drop=5")
    assert ended.exit_code == 1, ended.stderr
    said = json.loads(ended.stdout)["evaluation"]
    assert said["rapid"]
    assert said["taken"] <= said["planned"]


def test_other_shapes_are_a_major_version(here: Path) -> None:
    ended = run(here, "wider", "--out", "wide")
    assert ended.exit_code == 1, ended.stderr
    assert "the shapes changed" in ended.stdout
    assert "Nothing was evaluated." in (here / "wide" / "report.html").read_text(encoding="utf-8")


def test_the_same_command_gives_the_same_bytes(here: Path) -> None:
    for folder in ("again", "once-more"):
        assert run(here, "broken", "--out", folder).exit_code == 1
    names = ["records.jsonl", "summary.json", "report.html"]
    assert [(here / "again" / n).read_bytes() for n in names] == [(here / "once-more" / n).read_bytes() for n in names]


def test_scores_are_taken_from_the_store_and_kept_there(here: Path, tmp_path: Path) -> None:
    store = Store.init(tmp_path)
    old = store.commit(here / "old", message="old")
    (tmp_path / "suite.yaml").write_text(
        "name: small\ntasks: [opinions]\nseeds: [0]\n"
        "protocols: {finetune: {examples: 16, test: 40, finetuning: {steps: 1, precision: fp32, max_length: 16}}}\n"
    )
    arguments = ("--suite", "suite.yaml", "--tasks", str(here / "tasks"), "--protocol", "finetune")

    def records() -> dict[Path, int]:
        return {p: p.stat().st_ino for p in (store.path / "evaluations").rglob("*.json")}

    first = invoke(tmp_path, "eval", "main", str(here / "broken"), *arguments)
    assert first.exit_code == 0, first.stderr
    made = records()
    assert len(made) == 2
    ended = gate(tmp_path, "main", str(here / "broken"), *arguments, "--out", "run", "--json")
    assert ended.exit_code in (0, 1, 3), ended.stderr
    assert json.loads(ended.stdout)["old"] == old.content
    assert records() == made
    assert not (tmp_path / "run" / "evaluations").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["old", "nowhere/", "--suite", "suite.yaml"], "nowhere"),
        (["old", "same", "--suite", "none.yaml"], "no such suite"),
        (["old", "same", "--suite", "suite.yaml", "--set", "max_drpo=1"], "did you mean"),
        (["old", "same", "--suite", "suite.yaml", "--policy", "suite.yaml"], "unknown key"),
        (["old", "same", "--suite", "suite.yaml", "--protocol", "nothing"], "no such protocol"),
        (["old", "same", "--suite", "suite.yaml", "--fisher", "old"], "cofuse: "),
        (["old", "same"], "--suite"),
    ],
)
def test_mistakes_are_neither_pass_nor_block(here: Path, arguments: list[str], says: str) -> None:
    ended = gate(here, *arguments, "--tasks", "tasks", "--out", "no")
    assert ended.exit_code == 2
    assert says in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (here / "no" / "summary.json").exists()
