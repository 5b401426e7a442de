"""Commands as somebody types them who has read no code: what works says what it did, what does not says why."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cofuse.checkpoint import Memory, content_id, open_local
from cofuse.store import Store

Ended = subprocess.CompletedProcess[str]


def cofuse(*arguments: str | Path, cwd: Path, env: dict[str, str] | None = None) -> Ended:
    return subprocess.run(
        [sys.executable, "-m", "cofuse", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", "NO_COLOR": "1", **(env or {})},
    )


def done(*arguments: str | Path, cwd: Path, env: dict[str, str] | None = None) -> str:
    ended = cofuse(*arguments, cwd=cwd, env=env)
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout


def refused(*arguments: str | Path, cwd: Path) -> str:
    """What a failing command says; exactly one clear error."""
    ended = cofuse(*arguments, cwd=cwd)
    assert ended.returncode in (1, 2)
    assert "Traceback" not in ended.stderr
    assert ended.stderr.count("cofuse: ") + ended.stderr.count("Error: ") == 1
    return ended.stderr


def model(folder: Path, value: float, **more: torch.Tensor) -> Path:
    tensors = {"layer.weight": torch.full((4, 3), value), "layer.bias": torch.full((3,), value), **more}
    Memory(tensors, files={"config.json": b'{"model_type": "none"}'}).save(folder)
    return folder


@pytest.fixture
def here(tmp_path: Path) -> Path:
    model(tmp_path / "one", 1.0)
    model(tmp_path / "two", 2.0)
    return tmp_path


RECIPE = """
merge_method: linear
models:
  - model: ./one
    parameters: {weight: 1}
  - model: ./two
    parameters: {weight: 3}
"""


def test_a_day_of_version_control(here: Path) -> None:
    assert done("init", cwd=here) == f"made {here / '.cofuse'}\n"
    said = done("commit", "one", "-m", "start", "--author", "Ada", cwd=here)
    assert said.endswith(f" start\n  content {content_id(open_local(here / 'one'))}\n")
    second = json.loads(done("commit", "two", "-m", "better", "--json", cwd=here, env={"COFUSE_AUTHOR": "Bob"}))
    assert set(second) == {"commit", "tree", "content"}
    log = done("log", cwd=here)
    assert log.index("better") < log.index("start")
    assert "author Ada" in log
    assert f"commit {second['commit']} (HEAD -> main)\nauthor Bob\n" in log
    rows = [json.loads(line) for line in done("log", "-n", "1", "--json", cwd=here).splitlines()]
    assert [(r["commit"], r["message"], r["author"]) for r in rows] == [(second["commit"], "better", "Bob")]
    assert done("branch", "side", "main~1", cwd=here).endswith(" side\n")
    done("tag", "v1", cwd=here)
    assert [line.split()[1] for line in done("branch", cwd=here).splitlines()] == ["main", "side"]
    assert done("tag", cwd=here) == f"{second['commit'][:12]} v1\n"
    assert done("checkout", "main~1", "old", cwd=here) == "main~1 in old\n"
    assert (here / "old/model.safetensors").read_bytes() == (here / "one/model.safetensors").read_bytes()
    shown = json.loads(done("show", "v1", "--json", cwd=here))
    assert shown["content"] == second["content"]
    assert shown["tensors"]["layer.weight"] == {"dtype": "F32", "shape": [4, 3]}
    assert "2 commits" in done("fsck", cwd=here)


def test_fsck_says_what_is_damaged(here: Path) -> None:
    done("init", cwd=here)
    made = json.loads(done("commit", "one", "-m", "start", "--json", cwd=here))
    path = here / ".cofuse/objects" / made["tree"][:2] / made["tree"][2:]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    ended = cofuse("fsck", cwd=here)
    assert ended.returncode == 1
    assert ended.stderr.startswith("cofuse: the store is damaged\n")
    assert f"{made['tree']}: " in ended.stdout
    assert "Damage(" not in ended.stdout
    assert "Traceback" not in ended.stderr


def test_fuse_says_what_it_would_do_and_does_it(here: Path) -> None:
    (here / "recipe.yaml").write_text(RECIPE)
    plan = done("fuse", "recipe.yaml", "out", "--dry-run", cwd=here)
    assert plan.startswith("layer.*  linear  F32    weight 1 3\n2 tensors; 120 bytes to read, 60 to write;")
    assert "compatibility of 2 models" in plan
    assert not (here / "out").exists()
    said = done("fuse", "recipe.yaml", "out", "--threads", "3", cwd=here)
    assert said.startswith("out: 2 tensors, ")
    assert open_local(here / "out").read("layer.bias").tolist() == [1.75] * 3
    done("fuse", "recipe.yaml", "again", "--threads", "1", cwd=here)
    assert (here / "out/model.safetensors").read_bytes() == (here / "again/model.safetensors").read_bytes()
    done("fuse", "recipe.yaml", "third", "--set", "models.1.parameters.weight=1e0", cwd=here)
    assert open_local(here / "third").read("layer.bias").tolist() == [1.5] * 3


def test_body_takes_the_head_off(here: Path) -> None:
    tuned = {
        "model.layer.weight": torch.ones(4, 3),
        "model.layer.bias": torch.ones(3),
        "classifier.weight": torch.ones(2),
    }
    Memory(tuned).save(here / "tuned")
    said = done("body", "tuned", "mine", "--like", "one", cwd=here)
    assert "prefix 'model.'" in said
    assert "dropped (head): classifier.weight" in said
    assert open_local(here / "mine").names() == open_local(here / "one").names()


def test_show_names_tensors_and_content(here: Path) -> None:
    said = done("show", "./one", cwd=here)
    assert "F32   [4, 3]               layer.weight\n" in said
    assert said.endswith(f"content {content_id(open_local(here / 'one'))}\n")


def test_help_is_there(here: Path) -> None:
    said = done("--help", cwd=here)
    for verb in (
        "fuse",
        "body",
        "show",
        "init",
        "commit",
        "log",
        "branch",
        "tag",
        "checkout",
        "fsck",
        "evolve",
        "report",
    ):
        assert f"  {verb} " in said
    for option in ("--out", "--tasks", "--workers", "--set"):
        assert option in done("evolve", "--help", cwd=here)
    assert done("--version", cwd=here).startswith("cofuse 0.")


BAD_STUDY = "name: x\nbase: ./one\nseen: [a]\nrouns: 3\nrounds: 2\nfinetune: {steps: 1}\n"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["lgo"], "No such command 'lgo'"),
        (["log"], "make one with: cofuse init"),
        (["fsck"], "no store here or above"),
        (["commit", "one"], "Missing option '-m'"),
        (["commit", "one", "-m", "x"], "no store here or above"),
        (["checkout", "main"], "Missing argument 'DIR'"),
        (["show", "./nothing/"], "no such file or folder"),
        (["show", "."], "no weights in the folder"),
        (["fuse", "nothing.yaml", "out"], "cannot read the file"),
        (["fuse", "typo.yaml", "out"], 'did you mean "merge_method"?'),
        (["fuse", "recipe.yaml", "out", "--set", "models.7.model=x"], "no such element of a list"),
        (["fuse", "recipe.yaml", "out", "--set", "weight"], "KEY=VALUE"),
        (["fuse", "recipe.yaml", "out", "--set", "dtype=["], "not a YAML value"),
        (["fuse", "recipe.yaml", "out", "--set", "models.0.model=./gone"], "no such file or folder"),
        (["fuse", "recipe.yaml", "out", "--threads", "0"], "--threads"),
        (["fuse", "recipe.yaml", "."], "cofuse: "),
        (["fuse", "unlike.yaml", "out"], "another shape"),
        (["body", "one", "out"], "Missing option '--like'"),
        (["body", "other", "out", "--like", "one"], "another shape"),
        (["evolve", "nothing.yaml"], "cannot read the file"),
        (["evolve", "study.yaml"], 'unknown key "rouns"'),
        (["evolve", "study.yaml", "--workers", "0"], "--workers"),
        (["report", "."], "is this the folder of a run?"),
    ],
)
def test_mistakes_are_explained(here: Path, arguments: list[str], expected: str) -> None:
    model(here / "other", 1.0, **{"layer.bias": torch.zeros(5)})
    (here / "recipe.yaml").write_text(RECIPE)
    (here / "typo.yaml").write_text(RECIPE.replace("merge_method", "merge_metod"))
    (here / "unlike.yaml").write_text(RECIPE.replace("./two", "./other"))
    (here / "study.yaml").write_text(BAD_STUDY)
    before = sorted(p for p in here.rglob("*"))
    assert expected in refused(*arguments, cwd=here)
    assert sorted(p for p in here.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["log", "nowhere"], "nowhere"),
        (["log"], "main"),
        (["checkout", "nowhere", "out"], "nowhere"),
        (["commit", "nothing", "-m", "x"], "the address names nothing"),
        (["tag", "v1"], "main"),
    ],
)
def test_mistakes_in_an_empty_store(here: Path, arguments: list[str], expected: str) -> None:
    done("init", cwd=here)
    # Offline, so that a word that is no path and no revision is not looked for on a hub.
    ended = cofuse(*arguments, cwd=here, env={"HF_HUB_OFFLINE": "1"})
    assert ended.returncode == 1
    assert ended.stderr.startswith("cofuse: ")
    assert expected in ended.stderr
    assert "Traceback" not in ended.stderr


def test_what_is_there_is_not_written_over(here: Path) -> None:
    done("init", cwd=here)
    done("commit", "one", "-m", "start", cwd=here)
    done("commit", "two", "-m", "next", cwd=here)
    done("tag", "v1", cwd=here)
    assert "v1" in refused("tag", "v1", "main~1", cwd=here)
    assert "bad..name" in refused("branch", "bad..name", cwd=here)
    (here / "two/notes.txt").write_text("kept nowhere else")
    before = (here / "two/model.safetensors").read_bytes()
    assert "two" in refused("checkout", "main", "two", cwd=here)
    assert (here / "two/model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    "arguments", [["--help"], ["log"], ["evolve", "--help"], ["tag"], ["fsck"], ["commit", "one", "-m", "x"]]
)
def test_these_do_not_import_torch(here: Path, arguments: list[str]) -> None:
    done("init", cwd=here)
    done("commit", "two", "-m", "start", cwd=here)
    code = f"""
import sys
sys.argv = ["cofuse", *{arguments!r}]
from cofuse.cli import main
try:
    main()
except SystemExit as ended:
    assert not ended.code
heavy = {{"torch", "transformers", "huggingface_hub", "sklearn", "matplotlib"}} & set(sys.modules)
assert not heavy, heavy
"""
    ended = subprocess.run([sys.executable, "-c", code], cwd=here, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_output_that_nobody_reads_is_no_error(here: Path) -> None:
    done("init", cwd=here)
    Store.open(here).commit(here / "one", message="x" * 200_000)  # more than a pipe holds
    command = f"{sys.executable} -m cofuse log | head -c 10"
    ended = subprocess.run(["bash", "-c", command], cwd=here, capture_output=True, text=True, check=False)
    assert (ended.stdout, ended.stderr) == ("commit " + ended.stdout[7:], "")
