"""`cofuse rank`, `choose` and `curve` as somebody types them."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from click.testing import Result
from measure.suites import SUITE
from tasks.tiny import bert, opinion_task, vit
from typer.testing import CliRunner

from cofuse.checkpoint import content_id, open_local
from cofuse.cli.app import application, main
from cofuse.fuse import fuse_recipe, read_recipe
from cofuse.measure.choosing import WAYS
from cofuse.store import Store

PROBE = {"probe": {"examples": 30, "test": 60, "probing": {"precision": "fp32"}}}
FINETUNE = {"finetune": {"examples": 10, "test": 60, "finetuning": {"steps": 1, "precision": "fp32"}}}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("choosing")
    for i in range(4):
        vit(i).save(folder / f"m{i}")
    for i in range(2):
        bert(i).save(folder / f"b{i}")
    said = {**SUITE, "seeds": [0], "protocols": {**PROBE, **FINETUNE}}
    (folder / "s.yaml").write_text(yaml.safe_dump(said, sort_keys=False))
    (folder / "even.yaml").write_text(yaml.safe_dump(SUITE["tasks"][0]))
    (folder / "stored").mkdir()
    opinion_task(folder / "opinions", sizes=(40, 16, 24))
    return folder


def run(here: Path, *arguments: str) -> Result:
    """The command in this process, which has loaded torch already."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        patch.setenv("COLUMNS", "160")
        return CliRunner().invoke(application(arguments[0]), list(arguments), prog_name="cofuse")


def said(here: Path, *arguments: str) -> dict[str, Any]:
    ended = run(here, *arguments, "--json")
    assert ended.exit_code == 0, ended.stderr or ended.exception
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def test_ranking_first_cheaply_then_dearly(here: Path) -> None:
    models = ("m1", "m2", "m3", "--pretrained", "m0", "--suite", "s.yaml", "--jobs", "1")
    probe = ("--protocol", "probe", "--task", "even")
    cheap = run(here, "rank", *models, *probe)
    assert cheap.exit_code == 0, cheap.stderr or cheap.exception
    assert "4 measured now" in cheap.stdout
    assert "Spearman" not in cheap.stdout  # nothing to compare with yet
    dear = said(here, "rank", *models, "--protocol", "finetune")
    assert [r["protocol"] for r in dear["rankings"]] == ["finetune"]  # the probe is not known on all tasks
    both = run(here, "rank", *models, *probe)
    assert "0 measured now" in both.stdout
    assert "probe on even against finetune on even, small, 3 models over m0: Spearman" in both.stdout
    summary = json.loads((here / "runs" / "rank-digits" / "summary.json").read_text())
    assert [(r["protocol"], r["tasks"]) for r in summary["rankings"]] == [
        ("probe", ["even"]),
        ("finetune", ["even", "small"]),
    ]
    assert summary["rankings"][1] == dear["rankings"][0]
    rows = list(csv.DictReader(io.StringIO((here / "runs" / "rank-digits" / "ranking.csv").read_text())))
    assert [r["model"] for r in rows] == [m["model"] for m in summary["rankings"][0]["models"]]
    # The same command gives the same bytes.
    folder = here / "runs" / "rank-digits"
    files = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    assert set(files) == {"summary.json", "ranking.csv", "ranking-finetune-2.csv", "report.html"}
    assert run(here, "rank", *models, *probe).exit_code == 0
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()} == files


def test_a_greedy_soup_its_recipe_and_its_scores(here: Path) -> None:
    work = here / "stored"
    Store.init(work)
    suite = ("--suite", "../s.yaml", "--protocol", "probe", "--jobs", "1")
    command = ("choose", "../m0", "../m1", *suite, "--base", "../m3", "-o", "greedy.yaml")
    found = said(work, *command)
    singles = {t["name"]: t["held_out"] for t in found["tried"] if t["name"] in ("../m0", "../m1")}
    assert found["held_out"] >= max(singles.values())
    assert set(found["reasons"]) == set(singles)
    assert set(found["test"]) == {"chosen", "all of them", "the best alone", "the base"}
    # What the recipe makes is what was scored.
    recipe = read_recipe(work / "greedy.yaml")
    assert recipe.canonical == found["recipe"]
    made = run(work, "fuse", "greedy.yaml", "fused")
    assert made.exit_code == 0, made.stderr
    models = {name: open_local(work / name) for name in singles}
    assert content_id(open_local(work / "fused")) == content_id(fuse_recipe(recipe, models))
    # So its test score is known to `cofuse eval`, from the same records.
    evaluated = run(work, "eval", "fused", *suite)
    assert "0 measured now" in evaluated.stdout
    summary = json.loads((work / "runs" / "eval-digits" / "summary.json").read_text())
    assert found["test"]["chosen"] == pytest.approx(next(r["mean"] for r in summary["rows"] if r["task"] == "*"))
    # In words, with nothing measured anew.
    words = run(work, *command, "--no-test")
    assert words.exit_code == 0, words.stderr
    assert f"greedy on digits: {found['held_out']:.2f} held out" in words.stdout
    assert "make it with: cofuse fuse greedy.yaml" in words.stdout
    assert " test " not in words.stdout


def test_learned_weights_of_layers(here: Path) -> None:
    said_of = ("--suite", "s.yaml", "--protocol", "probe", "--task", "even", "--jobs", "1", "--no-test")
    found = said(here, "choose", "m0", "m1", *said_of, "--way", "learned", "--per", "layer", "-o", "learned.yaml")
    assert [t["name"] for t in found["tried"]] == ["uniform", "learned"]
    assert run(here, "fuse", "learned.yaml", "learned").exit_code == 0


def test_a_curve_and_its_picture(here: Path) -> None:
    found = said(here, "curve", "b0", "b1", "--task", "opinions", "--points", "3", "-o", "c.svg", "--max-length", "16")
    assert [p["share"] for p in found["points"]] == [0, 0.5, 1]
    assert found["barrier"] >= 0
    assert (here / "c.svg").read_text(encoding="utf-8").startswith("<svg")
    words = run(here, "curve", "b0", "b0", "--task", "opinions", "--points", "2", "--max-length", "16")
    assert words.exit_code == 0, words.stderr
    assert "barrier 0.0000 nats above the chord" in words.stdout


def test_the_help_names_every_way(here: Path) -> None:
    words = set(run(here, "choose", "--help").stdout.replace(",", " ").replace(".", " ").split())
    assert set(WAYS) <= words


def test_the_page_for_users_knows_the_commands() -> None:
    """Every command on the page has the options that it is written with, and the page has every way."""
    text = (Path(__file__).parents[2] / "docs" / "choosing.md").read_text(encoding="utf-8")
    lines = [line.split() for line in text.splitlines() if line.startswith("cofuse ")]
    assert {line[1] for line in lines} == {"rank", "choose", "curve", "fuse"}
    for line in lines:
        command: Any = typer.main.get_command(application(line[1]))
        options = {name for p in command.commands[line[1]].params for name in (*p.opts, *p.secondary_opts)}
        assert {word for word in line if word.startswith("-")} <= options
    assert set(WAYS) == set(re.findall(r"^\| `(\w+)`(?: \(default\))? \| .* \| [^|]*\|$", text, re.MULTILINE))


SAME = ["--suite", "s.yaml", "--protocol", "probe"]
WRONG: list[tuple[list[str], str]] = [
    (["rank", "m1", *SAME], "--pretrained"),
    (["rank", "m1", "m1", "--pretrained", "m0", *SAME], "a model stands twice"),
    (["rank", "b0", "--pretrained", "m0", *SAME], "no pretrained model to compare with"),
    (["rank", "m1", "--pretrained", "m0", "--suite", "s.yaml", "--protocol", "oldhead"], "old heads rank nothing"),
    (["rank", "m1", "--pretrained", "none/", *SAME], "no such file or folder"),
    (["choose", "m0", "m1", *SAME, "--way", "greedi"], 'did you mean "greedy"'),
    (["choose", "m0", "m1", "--suite", "s.yaml"], "one protocol chooses"),
    (["choose", "m0", "m1", *SAME, "--way", "similar"], "similar needs the base"),
    (["choose", "m0", "m1", *SAME, "--way", "learned", "--per", "row"], "--per"),
    (["choose", "m0", "b0", *SAME, "--way", "uniform"], "cofuse: "),
    (["choose", "m0", "m0", *SAME], "a model stands twice"),
    (["curve", "b0", "m0", "--task", "opinions"], "cofuse: "),
    (["curve", "b0", "b1", "--task", "opinoins"], "unknown task"),
    (["curve", "b0", "b1", "--task", "opinions", "--head", "none"], "no such head"),
    (["curve", "b0", "b1", "--task", "opinions", "-o", "c.gif"], "no such kind of picture"),
]


@pytest.mark.parametrize(("arguments", "says"), WRONG, ids=[" ".join([a[0], s]) for a, s in WRONG])
def test_wrong_arguments_are_told(
    here: Path,
    arguments: list[str],
    says: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(here)
    monkeypatch.setattr(
        sys, "argv", ["cofuse", *arguments, *(["--out", "bad.yaml"] if "curve" not in arguments else [])]
    )
    with pytest.raises(SystemExit) as ended:
        main()
    output = capsys.readouterr()
    assert ended.value.code not in (0, None)
    assert says in output.err
    assert "Traceback" not in output.err
    assert not (here / "bad.yaml").exists() or not (here / "bad.yaml" / "summary.json").exists()
