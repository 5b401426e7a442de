"""Pairing two models: what must not matter does not, and what does not compare is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cofuse.errors import CheckpointError, CofuseError, SuiteError
from cofuse.measure.gate import Matched, compare
from cofuse.measure.gate.document import adjust
from cofuse.measure.outcomes import Outcomes

from .made import cells, drawn, outcomes, pair


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 30), st.integers(1, 30), st.randoms())
def test_counts_are_those_of_the_four_cells(both: int, lost: int, won: int, neither: int, random: object) -> None:
    found = pair(both, lost, won, neither).tasks[0]
    n = both + lost + won + neither
    assert found.difference == Matched(won, lost, n)
    assert found.negative is not None
    assert found.positive is not None
    assert (found.negative.count, found.positive.count, found.n) == (lost, won, n)
    assert found.new - found.old == pytest.approx(found.difference.mean)
    assert found.positive.percent - found.negative.percent == pytest.approx(found.difference.mean)


def test_the_order_of_examples_does_not_matter() -> None:
    old, new = drawn(0, 300, flips=0.2, drop=0.05)
    a, b = outcomes(old), outcomes(new, model="new")
    random = np.random.default_rng(1)
    shuffled = [o.take(random.permutation(300)) for o in (a, b)]
    assert compare([shuffled[0]], [shuffled[1]]) == compare([a], [b])
    # Nor does the order in which tasks and seeds come.
    c, d = replace(a, task="u", seed=3), replace(b, task="u", seed=3)
    assert compare([c, a], [b, d]) == compare([a, c], [d, b])


def test_the_mean_over_tasks_is_as_wide_as_its_tasks_say() -> None:
    one = pair(600, 40, 30, 330)
    d = one.tasks[0].difference
    assert one.mean(1.96) == pytest.approx((d.mean, *d.interval(1.96)))
    four = compare(
        [outcomes(cells(600, 40, 30, 330)[0], task=t) for t in "abcd"],
        [outcomes(cells(600, 40, 30, 330)[1], task=t, model="new") for t in "abcd"],
    )
    mean, low, high = four.mean(1.96)
    own_low, own_high = d.interval(1.96)
    assert mean == pytest.approx(d.mean)
    assert high - low == pytest.approx((own_high - own_low) / 2)  # the square root of four


def test_the_mean_holds_the_truth_as_often_as_it_says() -> None:
    held = 0
    for run in range(400):
        sides = {f"t{i}": drawn([run, i], 250, flips=0.02 + 0.06 * i, drop=0.01 * i) for i in range(4)}
        found = compare(
            [outcomes(a, task=t) for t, (a, _) in sides.items()],
            [outcomes(b, task=t, model="new") for t, (_, b) in sides.items()],
        )
        _, low, high = found.mean(1.959964)
        held += low <= -100 * np.mean([0.01 * i for i in range(4)]) <= high
    assert 0.92 <= held / 400 <= 0.98


def test_the_worst_task_is_the_one_that_lost_most() -> None:
    sides = {"a": cells(80, 5, 5, 10), "b": cells(80, 9, 1, 10), "c": cells(80, 1, 9, 10)}
    found = compare(
        [outcomes(a, task=t) for t, (a, _) in sides.items()],
        [outcomes(b, task=t, model="new") for t, (_, b) in sides.items()],
    )
    assert found.worst is not None
    assert found.worst.task == "b"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"task": "u"}, "only one of the models was measured"),
        ({"protocol": "probe"}, "only one of the models was measured"),
        ({"seed": 1}, "models are paired by seed"),
        ({"task_id": "other"}, "the task's data differ"),
        ({"suite": "other"}, "scores of different suites do not compare"),
        ({"metric": "macro_f1"}, "the metric differs"),
        ({"examples": np.arange(1, 11)}, "the models saw different examples"),
    ],
)
def test_what_does_not_compare_is_refused(change: dict[str, object], says: str) -> None:
    a, b = outcomes([1] * 10), outcomes([1] * 10, model="new")
    with pytest.raises(SuiteError, match=says):
        compare([a], [replace(b, **change)])  # type: ignore[arg-type]


def test_nothing_and_twice_are_refused() -> None:
    a = outcomes([1] * 10)
    with pytest.raises(SuiteError, match="nothing to compare"):
        compare([], [])
    with pytest.raises(SuiteError, match="measured twice"):
        compare([a, a], [a])


def test_adjusted_p_values_are_holms() -> None:
    p = [0.01, 0.02, 0.03, 0.04, 0.05]
    assert adjust(p) == pytest.approx([0.05, 0.08, 0.09, 0.09, 0.09])
    assert adjust([]) == []
    assert adjust([0.9, 0.8]) == [1.0, 1.0]


class TestFiles:
    """Outcomes on disk."""

    def test_they_come_back_as_they_were(self, tmp_path: Path) -> None:
        old, _ = drawn(0, 50, flips=0.1, drop=0)
        for o in (
            outcomes(old, log_probabilities=np.zeros((50, 2), np.float32)),
            Outcomes.predicted(np.arange(5.0), np.ones(5), metric="pearson", model="m", task="t", protocol="probe"),
            Outcomes(model="m", task="t", protocol="perplexity", metric="minus_nats_per_token",
                     examples=np.arange(3), scores=np.array([-1.0, -2.0, -3.0])),
        ):  # fmt: skip
            path = tmp_path / "x.safetensors"
            o.save(path)
            first = path.read_bytes()
            again = Outcomes.load(path)
            again.save(path)
            assert path.read_bytes() == first
            assert again.value == o.value
            for name in ("examples", "scores", "labels", "predictions", "log_probabilities"):
                a, b = getattr(o, name), getattr(again, name)
                assert (a is None) == (b is None)
                assert a is None or (np.array_equal(a, b) and a.dtype == b.dtype)

    def test_damage_is_told(self, tmp_path: Path) -> None:
        path = tmp_path / "x.safetensors"
        outcomes([1, 0, 1]).save(path)
        whole = path.read_bytes()
        for damaged in (b"", whole[:20], whole[:-3], whole.replace(b'\\"task\\"', b'\\"tusk\\"')):
            path.write_bytes(damaged)
            with pytest.raises(CheckpointError):
                Outcomes.load(path)

    @pytest.mark.parametrize(
        "change",
        [
            {"scores": np.ones(3)},
            {"scores": np.array([1.0, np.nan])},
            {"examples": np.array([1, 1])},
            {"labels": None},
            {"labels": None, "predictions": None},
            {"log_probabilities": np.zeros(2, np.float32)},
        ],
    )
    def test_outcomes_are_one_an_example(self, change: dict[str, object]) -> None:
        with pytest.raises(CofuseError):
            replace(outcomes([1, 0]), **change)  # type: ignore[arg-type]

    def test_batches_are_joined(self) -> None:
        whole = outcomes([1, 0, 1, 1], log_probabilities=np.zeros((4, 2), np.float32))
        joined = Outcomes.joined([whole.take(np.arange(2)), whole.take(np.arange(2, 4))])
        assert joined.scores.tolist() == whole.scores.tolist()
        assert joined.log_probabilities is not None
        assert joined.log_probabilities.shape == (4, 2)
