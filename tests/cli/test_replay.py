"""`cofuse fuse` leaves a record, and `cofuse replay` makes it again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from cofuse.checkpoint import content_id, open_local

from .test_newcomer import RECIPE, cofuse, done, model, refused


@pytest.fixture
def here(tmp_path: Path) -> Path:
    model(tmp_path / "one", 1.0)
    model(tmp_path / "two", 2.0)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    done("fuse", "recipe.yaml", "out", cwd=tmp_path)
    return tmp_path


def test_the_same(here: Path) -> None:
    assert done("replay", "out", cwd=here) == f"the same: content {content_id(open_local(here / 'out'))}\n"
    said = json.loads(done("replay", "out", "--json", cwd=here))
    assert (said["same"], said["inputs"], said["tensors"], said["files"]) == (True, [], [], [])


def test_it_is_written_too_when_asked(here: Path) -> None:
    done("replay", "out", "--out", "again", cwd=here)
    for path in (here / "out").iterdir():
        assert path.read_bytes() == (here / "again" / path.name).read_bytes(), path.name


def test_from_elsewhere(here: Path) -> None:
    (here / "elsewhere").mkdir()
    assert "no such file" in refused("replay", "../out", cwd=here / "elsewhere")
    done("replay", "../out", "--from", "..", cwd=here / "elsewhere")


def test_what_was_set_on_the_command_line_is_recorded(here: Path) -> None:
    done("fuse", "recipe.yaml", "other", "--set", "models.0.parameters.weight=5", "--set", "seed=9", cwd=here)
    record = json.loads((here / "other" / "cofuse.json").read_bytes())
    assert record["recipe"]["models"][0]["parameters"]["weight"] == 5
    assert record["seed"] == 9
    done("replay", "other", cwd=here)


def test_a_changed_input(here: Path) -> None:
    model(here / "two", 3.0)
    ended = cofuse("replay", "out", cwd=here)
    assert ended.returncode == 1
    now = content_id(open_local(here / "two"))[:16]
    assert f"changed input: ./two: content {now}, was " in ended.stdout
    assert "2 tensors that differ: layer.bias, layer.weight\n" in ended.stdout
    assert "altered" not in ended.stdout
    said = json.loads(cofuse("replay", "out", "--json", cwd=here).stdout)
    assert not said["same"]
    assert said["inputs"][0]["found"].startswith(now)


def test_an_altered_result(here: Path) -> None:
    out = open_local(here / "out")
    tensors = {name: out.read(name) for name in out.names()}
    record = (here / "out" / "cofuse.json").read_bytes()
    model(here / "out", 0.0, **{**tensors, "layer.bias": torch.zeros(3)})
    (here / "out" / "cofuse.json").write_bytes(record)
    ended = cofuse("replay", "out", cwd=here)
    assert ended.returncode == 1
    assert "out was altered after it was made" in ended.stdout
    assert "1 tensors that differ: layer.bias\n" in ended.stdout
    assert "changed input" not in ended.stdout


def test_of_a_version_in_a_store(here: Path) -> None:
    done("init", cwd=here)
    done("commit", "out", "-m", "fused", cwd=here)
    assert done("replay", "main", cwd=here).startswith("the same: ")


def test_what_has_no_record(here: Path) -> None:
    assert "no record of how it was made" in refused("replay", "one", cwd=here)
