"""Outcomes of real models by batches: the same as the protocols give all at once."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from tasks.tiny import even, vit

from cofuse.errors import CheckpointError
from cofuse.measure.evaluation.evaluating import Model
from cofuse.measure.evaluation.protocols import Given, OldHeadProtocol, ProbeProtocol, run_oldhead, run_probe
from cofuse.measure.evaluation.records import Records
from cofuse.measure.evaluation.suite import Measure, OpenSuite
from cofuse.measure.gate import Batch, Policy
from cofuse.measure.gate.document import document, lines
from cofuse.measure.gate.running import gate
from cofuse.measure.gate.source import Source
from cofuse.measure.statistics.record import StatisticsRecord, with_record

SETTINGS = {"examples": 60, "probing": {"precision": "fp32"}}
OLD, NEW = (Model.of(name, partial(vit, seed)) for name, seed in (("old", 1), ("new", 2)))


def suite(*protocols: str, seeds: tuple[int, ...] = (0, 1)) -> OpenSuite:
    rows = {"oldhead": OldHeadProtocol, "probe": ProbeProtocol}
    measures = tuple(Measure(even(), p, rows[p].model_validate(SETTINGS), 1) for p in protocols)
    return OpenSuite("digits", seeds, measures)


@pytest.mark.parametrize(("protocol", "runner"), [("oldhead", run_oldhead), ("probe", run_probe)])
def test_batches_are_what_the_protocol_gives(protocol: str, runner: object, tmp_path: Path) -> None:
    source = Source(OLD, NEW, suite(protocol), Records(tmp_path), cache=tmp_path / "cache")
    (item,) = source.items()
    n = len(even().examples("test"))
    assert item.available == n
    parts = [source(Batch(protocol, "even", a, b)) for a, b in ((0, 50), (50, 51), (51, n))]
    rows = np.concatenate([old[0].examples for old, _ in parts])
    assert sorted(rows) == list(range(n))  # each example once
    assert list(rows) != sorted(rows)  # and in a drawn order, for a split that is sorted
    for side, model in ((0, OLD), (1, NEW)):
        for s, seed in enumerate((0, 1)):
            settings = suite(protocol).measures[0].settings
            (twin,) = runner(model.open(), even(), settings, seed, Given(OLD.open())).outcomes  # type: ignore[operator]
            found = [p[side][s] for p in parts]
            assert {o.seed for o in found} == {seed}
            assert {o.model for o in found} == {model.content}
            said = np.concatenate([np.asarray(o.predictions) for o in found])
            logs = np.concatenate([np.asarray(o.log_probabilities) for o in found])
            assert np.array_equal(said, np.asarray(twin.predictions)[rows])
            assert np.allclose(logs, np.asarray(twin.log_probabilities)[rows], atol=1e-4)


def test_a_model_passes_against_itself_by_two_protocols_and_seeds(tmp_path: Path) -> None:
    same = replace(OLD, name="new")
    policy = Policy(max_drop=5, max_mean_drop=5)
    for rapid in (False, True):
        found = gate(OLD, same, suite("oldhead", "probe"), policy, Records(tmp_path), rapid=rapid)
        assert (found.verdict.state, found.verdict.step) == ("pass", "patch")
        assert all(t.difference.mean == 0 and t.seeds == (0, 1) for t in found.comparison.tasks)
        assert document(found) == document(
            gate(OLD, same, suite("oldhead", "probe"), policy, Records(tmp_path), rapid=rapid)
        )
        assert len({line["id"] for line in lines(found)}) == 4


def test_a_fisher_of_the_old_model_predicts(tmp_path: Path) -> None:
    # All ones: half the squared length of the change.
    old, new = vit(1), vit(2)
    said = StatisticsRecord(kind="fisher", model=OLD.content, examples=1)
    fisher = with_record({name: old.read(name) * 0 + 1 for name in old.names()}, said)
    found = gate(OLD, NEW, suite("oldhead", seeds=(0,)), Policy(), Records(tmp_path), fisher=fisher)
    change = sum(float(((new.read(n) - old.read(n)).double() ** 2).sum()) for n in old.names())
    assert found.comparison.predicted == pytest.approx(change / 2, rel=1e-5)
    negative = with_record({name: -fisher.read(name) for name in fisher.names()}, said)
    with pytest.raises(CheckpointError, match="not negative"):
        gate(OLD, NEW, suite("oldhead"), Policy(), Records(tmp_path), fisher=negative)
