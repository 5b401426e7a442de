"""The verbs on histories, from the command line."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cofuse.checkpoint import Memory, open_local
from cofuse.cli.app import application
from cofuse.errors import CofuseError
from cofuse.store import Store

from .test_newcomer import cofuse, done, refused


def inside(*arguments: str, cwd: Path) -> str:
    """As `done`, in this process: starting one for each command takes ten times as long as the commands."""
    with contextlib.chdir(cwd), contextlib.redirect_stdout(io.StringIO()) as out:
        application(arguments[0])(list(arguments), standalone_mode=False)
    return out.getvalue()


def refused_inside(*arguments: str, cwd: Path) -> str:
    """As `refused`, in this process."""
    with pytest.raises(CofuseError) as caught:
        inside(*arguments, cwd=cwd)
    return str(caught.value)


def model(folder: Path, **tensors: float | torch.Tensor) -> Path:
    filled = {n: v if isinstance(v, torch.Tensor) else torch.full((2, 3), float(v)) for n, v in tensors.items()}
    Memory(filled, files={"config.json": b'{"model_type": "none"}'}).save(folder)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base on main, a version on it there, another on `side`."""
    tmp_path = tmp_path_factory.mktemp("made")
    model(tmp_path / "base", same=1, ours=1, both=1)
    model(tmp_path / "ours", same=1, ours=2, both=2)
    model(tmp_path / "theirs", same=1, ours=1, both=4)
    done("init", cwd=tmp_path)
    done("commit", "base", "-m", "base", "--author", "Ada", cwd=tmp_path)
    done("branch", "side", cwd=tmp_path)
    done("commit", "ours", "-m", "ours", cwd=tmp_path)
    done("commit", "theirs", "-m", "theirs", "--branch", "side", cwd=tmp_path)
    return tmp_path


@pytest.fixture
def here(made: Path, tmp_path: Path) -> Path:
    """The same, to be changed."""
    return Path(shutil.copytree(made, tmp_path / "here"))


def test_a_merge_from_end_to_end(here: Path) -> None:
    said = json.loads(done("merge", "side", "--json", cwd=here))
    assert (said["made"], said["fused"], said["settled"]) == (True, ["both"], {})
    rows = [json.loads(line) for line in done("log", "--json", cwd=here).splitlines()]
    assert [r["message"] for r in rows] == ["merge side into main", "theirs", "ours", "base"]
    assert (rows[0]["refs"], rows[1]["refs"]) == (["HEAD -> main"], ["side"])
    assert rows[0]["parents"] == [rows[2]["commit"], rows[1]["commit"]]
    log = done("log", "-n", "1", cwd=here)
    assert f"commit {said['commit']} (HEAD -> main)\nmerge  {rows[2]['commit'][:12]} {rows[1]['commit'][:12]}\n" in log
    assert done("replay", "HEAD", cwd=here) == f"the same: tree {said['tree']}\n"
    done("checkout", "main", "out", cwd=here)
    assert open_local(here / "out").read("both")[0, 0] == 3
    assert "no commit was needed" in done("merge", "side", cwd=here)
    done("revert", "HEAD", "--mainline", "1", cwd=here)
    assert "0 tensors differ, 3 are the same" in done("diff", "HEAD", "HEAD~2", cwd=here)
    done("cherry-pick", "side", cwd=here)
    found = json.loads(done("diff", "HEAD~1", "HEAD", "--json", cwd=here))
    assert [(one["name"], one["relative"]) for one in found["tensors"]] == [("both", 1.5)]


def test_show_says_what_a_version_changed(here: Path) -> None:
    inside("merge", "side", "--method", "ties", "--set", "density=0.5", "--seed", "3", "--author", "Bob", cwd=here)
    said = inside("show", "HEAD", cwd=here)
    for part in (
        "author Bob",
        "merge_method: ties",
        "density: 0.5",
        "seed: 3",
        "  changed   F32   [2, 3]               both",
    ):
        assert part in said, part
    assert "same" not in [line.split()[-1] for line in said.splitlines() if line.startswith("  changed")]
    found = json.loads(inside("show", "HEAD~2", "--json", cwd=here))
    assert found["changed"]["both"] == "added"
    assert found["tensors"]["both"] == {"dtype": "F32", "shape": [2, 3]}
    assert found["author"] == "Ada"
    assert "3 tensors" in inside("show", "./base", cwd=here)


def test_conflicts_are_listed_and_settled(here: Path) -> None:
    model(here / "theirs", same=1, ours=torch.zeros(4, 3), both=4)
    (here / "theirs" / "config.json").write_text("{}")
    (here / "ours" / "config.json").write_text('{"a": 1}')
    done("commit", "theirs", "-m", "resized", "--branch", "side", cwd=here)
    done("commit", "ours", "-m", "config", cwd=here)
    before = done("log", "--json", cwd=here)
    said = refused("merge", "side", cwd=here)
    assert "2 conflicts" in said
    assert "ours: changed by ours, reshaped from [2, 3] to [4, 3] by theirs" in said
    assert "config.json: changed by ours, changed by theirs" in said
    ended = cofuse("merge", "side", "--json", cwd=here)
    assert ended.returncode == 1
    assert {c["name"] for c in json.loads(ended.stdout)["conflicts"]} == {"ours", "config.json"}
    assert done("log", "--json", cwd=here) == before
    assert "nothing that both sides changed" in refused("merge", "side", "--ours", "wrong", cwd=here)
    said = done("merge", "side", "--theirs", "ours", "--ours", "*.json", cwd=here)
    assert "ours from theirs" in said
    assert done("replay", "HEAD", cwd=here).startswith("the same")


def test_branches_and_tags(here: Path) -> None:
    def listed(*what: str) -> list[str]:
        return [line.split(" ", 1)[1] for line in inside(*what, cwd=here).splitlines()]

    assert listed("branch") == ["main (HEAD)", "side"]
    inside("branch", "side", "--use", cwd=here)
    assert listed("branch") == ["main", "side (HEAD)"]
    assert "HEAD names this branch" in refused_inside("branch", "side", "--delete", cwd=here)
    inside("branch", "side", "--rename", "other/one", cwd=here)
    assert listed("branch") == ["main", "other/one (HEAD)"]
    assert "there is a branch of this name" in refused_inside("branch", "main", "--rename", "other/one", cwd=here)
    assert "no other branch or tag leads" in refused_inside("branch", "main", "--delete", cwd=here)
    inside("tag", "v1", "main", cwd=here)
    inside("branch", "main", "--delete", cwd=here)
    inside("branch", "fresh", "v1", "--use", cwd=here)
    assert "the ref has moved" in refused_inside("branch", "fresh", "other/one", cwd=here)
    inside("branch", "fresh", "other/one", "--force", cwd=here)
    assert inside("diff", "fresh", "other/one", cwd=here).startswith("0 tensors differ")
    assert listed("tag") == ["v1"]
    inside("tag", "v1", "--delete", cwd=here)
    assert listed("tag") == []
    assert "no such branch" in refused_inside("branch", "nowhere", "--delete", cwd=here)
    assert "one thing to do" in refused_inside("branch", "fresh", "--use", "--delete", cwd=here)


def test_diff_status_and_blame(here: Path) -> None:
    text = inside("diff", "base", "main", "--like", "side", cwd=here)
    rows = [line.split() for line in text.splitlines()[1:3]]
    assert [row[-1] for row in rows] == ["both", "ours"]
    assert rows[0][0] == "1"
    found = json.loads(inside("diff", "base", "side", "--json", "--like", "main", cwd=here))
    assert [(one["name"], one["cosine"], one["largest"]) for one in found["tensors"]] == [("both", 1.0, 3.0)]
    assert inside("status", "ours", cwd=here).endswith("nothing differs\n")
    (here / "ours" / "notes.txt").write_text("x")
    assert json.loads(inside("status", "ours", "--json", "--rev", "side", cwd=here)) == {
        "commit": json.loads(inside("log", "side", "-n", "1", "--json", cwd=here))["commit"],
        "files": {"model.safetensors": "changed", "notes.txt": "added"},
        "tensors": {"both": "changed", "ours": "changed"},
    }
    assert [line.rsplit("  ", 1)[1] for line in inside("blame", cwd=here).splitlines()] == ["ours", "ours", "base"]
    only = json.loads(inside("blame", "side", "b*", "--json", cwd=here))
    assert [(name, one["message"]) for name, one in only.items()] == [("both", "theirs")]
    assert "an option of a patch" in refused_inside("diff", "base", "main", "--rank", "2", cwd=here)


def test_checkout_replaces_only_what_is_kept(here: Path) -> None:
    inside("checkout", "main", "out", cwd=here)
    inside("checkout", "side", "out", cwd=here)
    assert open_local(here / "out").read("both")[0, 0] == 4
    (here / "out" / "notes.txt").write_text("mine")
    assert "not empty" in refused_inside("checkout", "main", "out", cwd=here)
    inside("checkout", "main", "out", "--replace", cwd=here)
    assert not (here / "out" / "notes.txt").exists()


def test_a_strangers_message_cannot_drive_the_terminal(here: Path) -> None:
    done("commit", "base", "-m", "red\x1b[31m\nsecond line", "--author", "Eve\x07", cwd=here)
    for verb in (["log"], ["show", "HEAD"], ["status", "base"]):
        said = inside(*verb, cwd=here)
        assert "\x1b" not in said
        assert "\x07" not in said
        assert "red\\x1b[31m" in said


def test_a_short_log_does_not_read_all_that_was_before(here: Path) -> None:
    first = json.loads(inside("log", "main~1", "--json", cwd=here))["commit"]
    store = Store.open(here)
    for _ in range(3):
        store.commit(here / "base", message="more", parents=["HEAD"])
    store.objects.path(first).unlink()
    assert len(inside("log", "-n", "3", "--json", cwd=here).splitlines()) == 3
    assert "object is missing" in refused_inside("log", cwd=here)


def test_criss_cross_names_the_bases(here: Path) -> None:
    ours, theirs = (json.loads(done("log", rev, "-n", "1", "--json", cwd=here))["commit"] for rev in ("main", "side"))
    done("merge", theirs, cwd=here)
    done("merge", ours, "--into", "side", "--method", "task_arithmetic", cwd=here)
    said = refused("merge", "side", cwd=here)
    assert "2 merge bases" in said
    assert f"{ours[:12]} ours" in said
    assert f"{theirs[:12]} theirs" in said
    done("merge", "side", "--base", ours, cwd=here)


@pytest.mark.parametrize(
    "verb", [["log", "-n", "3"], ["status", "ours"], ["show", "HEAD"], ["blame"], ["branch"], ["diff", "main", "side"]]
)
def test_no_torch_and_no_compiler(here: Path, verb: list[str]) -> None:
    code = (
        "import sys; from cofuse.cli.app import application\n"
        f"try: application({verb[0]!r})({verb!r})\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "print([m for m in ('torch', 'numba', 'transformers', 'huggingface_hub') if m in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=here, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-1] == "[]"
