"""`cofuse show x.patch --fisher F --base MODEL`: which tensors change the model most."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cofuse.checkpoint import Memory, content_id, open_local
from cofuse.measure.statistics.record import StatisticsRecord, with_record
from cofuse.patch import Patch, Sparse, make

from .test_newcomer import done, refused

SHAPE = (20, 16)


@pytest.fixture
def here(tmp_path: Path) -> Path:
    base = {name: torch.zeros(SHAPE) for name in ("big", "small", "other")}
    tuned = {"big": torch.full(SHAPE, 0.1), "small": torch.full(SHAPE, 0.2), "other": torch.full(SHAPE, 1.0)}
    Memory(base, files={"config.json": b"{}"}).save(tmp_path / "base")
    Memory(tuned, files={"config.json": b"{}"}).save(tmp_path / "tuned")
    # 320 values: 1/2 * 320 * 10 * 0.01 = 16 nats of one, and 1/2 * 320 * 1 * 0.04 = 6.4 of another.
    statistics = {"big": torch.full(SHAPE, 10.0), "small": torch.ones(SHAPE)}
    opened = open_local(tmp_path / "base")
    record = StatisticsRecord(kind="fisher", estimator="expected", model=content_id(opened), task="t", examples=7)
    with_record(statistics, record).save(tmp_path / "F")
    make(opened, open_local(tmp_path / "tuned"), tmp_path / "x.patch")
    return tmp_path


def test_tensors_come_in_the_order_of_what_they_do(here: Path) -> None:
    said = done("show", "x.patch", "--fisher", "F", "--base", "base", cwd=here)
    assert "22.4 nats an example" in said
    assert "expected Fisher of 7 examples of t" in said
    rows = [line.split() for line in said.splitlines() if line.endswith(("big", "small"))]
    assert rows == [["16", "71.4%", "big"], ["6.4", "28.6%", "small"]]
    assert "no statistics): other" in said
    assert Patch.load(here / "x.patch").base in said


def test_the_same_for_machines_and_for_a_tuned_model(here: Path) -> None:
    found = {}
    for what in ("x.patch", "tuned"):
        found[what] = json.loads(done("show", what, "--fisher", "F", "--base", "base", "--json", cwd=here))["predicted"]
    assert found["x.patch"] == found["tuned"]
    assert found["tuned"]["tensors"] == pytest.approx({"big": 16.0, "small": 6.4})
    assert found["tuned"]["total"] == pytest.approx(22.4)
    assert (found["tuned"]["missing"], found["tuned"]["unlike"]) == (["other"], [])


def test_a_sparse_patch_says_what_its_part_does(here: Path) -> None:
    make(
        open_local(here / "base"), open_local(here / "tuned"), here / "s.patch", Sparse(1.0, "names", globs=("small",))
    )
    said = json.loads(done("show", "s.patch", "--fisher", "F", "--base", "base", "--json", cwd=here))
    assert said["predicted"]["tensors"] == pytest.approx({"small": 6.4})
    assert said["exact"] is False


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["x.patch", "--fisher", "F"], "without the model that it starts from"),
        (["x.patch", "--base", "base"], "--fisher"),
        (["x.patch", "--fisher", "F", "--base", "tuned"], "belongs to another base"),
        (["base", "--fisher", "F", "--base", "tuned"], "belong to another model"),
        (["x.patch", "--fisher", "base", "--base", "base"], "not statistics"),
        (["x.patch", "--fisher", "./nowhere", "--base", "base"], "nowhere"),
    ],
)
def test_what_cannot_be_told_says_why(here: Path, options: list[str], reason: str) -> None:
    assert reason in refused("show", *options, cwd=here)


def test_the_base_that_is_wanted_is_named(here: Path) -> None:
    assert content_id(open_local(here / "base")) in refused("show", "x.patch", "--fisher", "F", cwd=here)


def test_it_imports_no_torch(here: Path) -> None:
    code = (
        "import sys; from cofuse.cli.app import application\n"
        "try: application('show')(['show', 'x.patch', '--fisher', 'F', '--base', 'base'])\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "print([m for m in ('torch', 'transformers', 'sklearn', 'scipy') if m in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=here, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-1] == "[]"
