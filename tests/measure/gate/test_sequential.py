"""The gate as a stream: what it asks for, when it stops, and that stopping early errs no more often."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cofuse.errors import SuiteError
from cofuse.measure.gate import Item, Policy, Trial, bounded, compare, judge, needed, tellable
from cofuse.measure.gate.matched import Matched
from cofuse.measure.gate.size import planned

from .made import cells, drawn, outcomes, trial


@given(st.floats(0.2, 10), st.floats(0, 0.9), st.integers(1, 40))
def test_so_many_examples_tell_that_margin(margin: float, flips: float, tests: int) -> None:
    n = needed(margin, flips, tests=tests)
    assert tellable(n, flips, tests=tests) == pytest.approx(margin, rel=1e-2)
    assert needed(margin, flips, tests=tests + 1) >= n
    assert needed(margin / 2, flips, tests=tests) >= n
    assert needed(margin, min(1.0, flips + 0.05), tests=tests) >= n


@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 50), st.integers(1, 50))
def test_no_more_flip_than_can(both: int, lost: int, won: int, neither: int) -> None:
    n = both + lost + won + neither
    found = Matched(won, lost, n)
    right = 100 * (both + lost) / n
    assert found.discordance <= bounded(right, found.mean) + 1e-9


def test_as_many_as_are_needed_have_the_power_that_was_asked_for() -> None:
    random = np.random.default_rng(3)
    for margin, flips in ((1.0, 0.08), (2.0, 0.2), (3.0, 0.01)):
        n, m = needed(margin, flips), margin / 100
        for lost, won, right in (
            (flips / 2, flips / 2, lambda z: z > 1.96),  # no change passes
            (max(flips, 2 * m) / 2 + m, max(flips, 2 * m) / 2 - m, lambda z: z < -1.96),  # twice the margin blocks
        ):
            counts = random.multinomial(n, [won, lost, 1 - won - lost], size=2000)
            z = [Matched(int(b), int(c), n).z(margin) for b, c, _ in counts]
            assert np.mean([right(value) for value in z]) >= 0.97


def test_a_pilot_that_saw_no_flip_does_not_promise_too_much() -> None:
    told = {"confidence": 0.95, "power": 0.98, "tests": 1}
    assert planned(Matched(0, 0, 50), 50, 1.0, **told) > planned(Matched(0, 0, 500), 500, 1.0, **told)  # type: ignore[arg-type]
    assert planned(Matched(0, 0, 500), 500, 1.0, **told) == needed(1.0, 0.0)  # type: ignore[arg-type]


SIDES = {f"t{i}": drawn(i, 40_000, flips=0.03, drop=0.0) for i in range(3)}


def test_it_takes_what_it_said_it_needs_and_no_more() -> None:
    found = trial(SIDES)
    for t in found.comparison.tasks:
        assert t.wanted is not None
        assert t.n == t.wanted < 40_000
        assert t.looks == (1.0,)
    assert found.verdict.state == "pass"
    assert (found.taken, found.saved) == (found.planned, 0.0)


def test_without_looking_it_decides_as_if_it_had_everything_at_once() -> None:
    found = trial(SIDES)
    n = {t.task: t.n for t in found.comparison.tasks}
    whole = compare(
        [outcomes(a[: n[t]], task=t) for t, (a, _) in SIDES.items()],
        [outcomes(b[: n[t]], task=t, model="new") for t, (_, b) in SIDES.items()],
    )
    assert [t.difference for t in whole.tasks] == [t.difference for t in found.comparison.tasks]
    assert judge(whole, Policy()).state == found.verdict.state


def test_a_small_task_is_taken_whole_and_said_to_be_too_small() -> None:
    found = trial({"small": cells(80, 2, 2, 16)})
    assert found.comparison.tasks[0].n == 100
    assert found.verdict.state == "undecided"
    assert "has 100" in found.verdict.reasons[0]


@pytest.mark.parametrize("drop", [0.0, 0.02, 0.05])
def test_rapid_decides_the_same_with_less(drop: float) -> None:
    sides = {**SIDES, "hit": drawn(9, 40_000, flips=0.03, drop=drop)}
    full, rapid = trial(sides), trial(sides, rapid=True)
    assert rapid.verdict.state == full.verdict.state == ("block" if drop else "pass")
    assert rapid.taken < full.taken
    assert 0.2 < rapid.saved < 1


def test_identical_models_are_passed_early() -> None:
    same = np.ones(20_000, bool)
    found = trial({"a": (same, same), "b": (same, same)}, rapid=True)
    assert (found.verdict.state, found.verdict.step) == ("pass", "patch")
    assert found.saved > 0.4


def test_the_cheap_and_telling_come_first() -> None:
    items = [
        Item("finetune", "a", 300),
        Item("oldhead", "dear", 300, cost=9),
        Item("oldhead", "cheap", 300, cost=1),
        Item("oldhead", "telling", 300, cost=9, telling=90),
    ]
    order = []
    one = Trial(items, Policy(), rapid=True)
    for batch in one:
        if (batch.protocol, batch.task) not in order:
            order.append((batch.protocol, batch.task))
        rows = np.arange(batch.start, batch.stop)
        both = [outcomes([1] * len(rows), task=batch.task, protocol=batch.protocol, examples=rows) for _ in range(2)]
        one.take([both[0]], [both[1]])
    assert order == [("oldhead", "telling"), ("oldhead", "cheap"), ("oldhead", "dear"), ("finetune", "a")]


def test_a_block_by_a_cheap_protocol_spares_the_dear_one() -> None:
    old, new = drawn(2, 20_000, flips=0.02, drop=0.1)
    one = Trial([Item("oldhead", "t", 20_000), Item("finetune", "t", 20_000, cost=100)], Policy(), rapid=True)
    for batch in one:
        assert batch.protocol == "oldhead"
        rows = np.arange(batch.start, batch.stop)
        one.take([outcomes(old[rows], examples=rows)], [outcomes(new[rows], examples=rows, model="new")])
    assert one.verdict.state == "block"


def test_a_stream_is_held_to_its_order() -> None:
    items = [Item("oldhead", "t", 500)]
    with pytest.raises(SuiteError, match="was not asked for"):
        Trial(items, Policy()).take([outcomes([1])], [outcomes([1])])
    with pytest.raises(SuiteError, match="was not handed in"):
        for _ in Trial(items, Policy()):
            pass
    one = Trial(items, Policy())
    next(iter(one))
    with pytest.raises(SuiteError, match="not of the batch"):
        one.take([outcomes([1])], [outcomes([1])])
    for wrong in ([], items * 2):
        with pytest.raises(SuiteError, match="each once"):
            Trial(wrong, Policy())
    assert list(Trial(items, Policy(), reshaped=True)) == []


def test_stopping_early_errs_no_more_often_than_one_look() -> None:
    # What is exactly at the margin must neither be passed nor blocked: each at most 2.5 % of the time.
    policy = Policy(max_drop=3, power=0.9)
    states = [
        trial({"t": drawn([5, run], 4000, flips=0.07, drop=0.03)}, policy, rapid=True).verdict.state
        for run in range(200)
    ]
    assert states.count("pass") / 200 <= 0.06
    assert states.count("block") / 200 <= 0.06


@pytest.mark.slow
def test_stopping_early_errs_no_more_often_over_several_tasks() -> None:
    policy = Policy(max_drop=3, max_mean_drop=100, power=0.9)
    states = []
    for run in range(1500):
        sides = {f"t{i}": drawn([6, run, i], 5000, flips=0.07, drop=0.03) for i in range(5)}
        states.append(trial(sides, policy, rapid=True).verdict.state)
    assert states.count("pass") == 0
    assert states.count("block") / 1500 <= 0.036  # 0.025 and three of its deviations
