"""Statistics as a checkpoint: a record binds them to a model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from cofuse.checkpoint import Memory, content_id, open_local
from cofuse.errors import TaskError
from cofuse.measure.statistics.record import (
    RECORD,
    StatisticsRecord,
    check_model,
    open_statistics,
    read_record,
    with_record,
)

MODEL = Memory({"w": torch.ones(2), "v": torch.zeros(3)})
OTHER = Memory({"w": torch.ones(2), "v": torch.ones(3)})


def of(model: Memory) -> Memory:
    record = StatisticsRecord(kind="fisher", estimator="sampled", model=content_id(model), examples=7, seed=2)
    shared = torch.ones(2)
    return with_record({"w": shared, "tied": shared}, record)


def test_a_record_comes_back_from_disk(tmp_path: Path) -> None:
    of(MODEL).save(tmp_path / "s")
    there = open_local(tmp_path / "s")
    assert read_record(there) == read_record(of(MODEL))
    assert dict(there.aliases) == {"tied": "w"}
    assert json.loads((tmp_path / "s" / RECORD).read_bytes())["model"] == content_id(MODEL)


def test_statistics_of_another_model_are_refused() -> None:
    assert open_statistics(of(MODEL), "fisher", model=MODEL).seed == 2
    assert open_statistics(of(MODEL), model=content_id(MODEL)).examples == 7
    check_model(of(MODEL), MODEL)
    for refused in (lambda: open_statistics(of(MODEL), model=OTHER), lambda: check_model(of(MODEL), OTHER)):
        with pytest.raises(TaskError, match="belong to another model") as error:
            refused()
        assert content_id(OTHER) in str(error.value)
    with pytest.raises(TaskError, match="not statistics"):
        check_model(MODEL, MODEL)  # the model itself: it says nothing of what it is, or whose
    with pytest.raises(TaskError, match="another kind"):
        check_model(of(MODEL), MODEL, "gram")
    with pytest.raises(TaskError, match="another kind"):
        open_statistics(of(MODEL), "gram")


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"statistics": 2}',
        b'{"kind": "fisher", "model": "x", "examples": 1}',
        b"\xff",
        b"[" * 9999,
    ],
)
def test_a_damaged_record_is_refused(raw: bytes) -> None:
    statistics = Memory({"w": torch.ones(2)}, files={RECORD: raw})
    with pytest.raises(TaskError, match="not a record of statistics"):
        read_record(statistics)
    with pytest.raises(TaskError, match="not a record of statistics"):
        check_model(statistics, MODEL)
    with pytest.raises(TaskError, match="not statistics"):
        read_record(MODEL)
