"""Other metrics and several seeds: bootstrap against a loop, variance components against a simulation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cofuse.measure.gate import Matched, compare
from cofuse.measure.gate.estimate import Estimate, divergence, estimate
from cofuse.measure.gate.resampling import resampled
from cofuse.measure.outcomes import Outcomes
from cofuse.tasks.metrics import METRICS

from .made import drawn, outcomes


def said(seed: int, n: int, classes: int, metric: str, noise: float) -> Outcomes:
    random = np.random.default_rng(seed)
    labels = np.random.default_rng(0).integers(classes, size=n)
    if metric in ("pearson", "spearman"):
        return Outcomes.predicted(
            labels + noise * random.standard_normal(n),
            labels,
            metric=metric,
            model=str(seed),
            task="t",
            protocol="probe",
        )
    wrong = random.random(n) < noise
    predicted = np.where(wrong, random.integers(classes, size=n), labels)
    return Outcomes.predicted(predicted, labels, metric=metric, model=str(seed), task="t", protocol="probe")


@pytest.mark.parametrize("metric", ["macro_f1", "matthews", "spearman"])
@pytest.mark.parametrize("classes", [2, 7])
def test_resamples_are_those_of_a_loop(metric: str, classes: int) -> None:
    old, new = said(1, 60, classes, metric, 0.3), said(2, 60, classes, metric, 0.6)
    found = resampled([old], [new], resamples=25)
    random, twin = np.random.default_rng(20221201), []
    for _ in range(25):
        rows = random.integers(60, size=60)
        twin.append(_value(new, rows) - _value(old, rows))
    assert found[0] == pytest.approx(twin)


def _value(o: Outcomes, rows: np.ndarray) -> float:
    return METRICS[o.metric](np.asarray(o.predictions)[rows], np.asarray(o.labels)[rows])


@pytest.mark.parametrize("metric", ["macro_f1", "matthews", "pearson", "spearman"])
def test_swapping_the_models_negates(metric: str) -> None:
    old, new = said(1, 200, 3, metric, 0.3), said(2, 200, 3, metric, 0.6)
    one, other = estimate([old], [new]), estimate([new], [old])
    assert one.mean == pytest.approx(-other.mean)
    assert one.error == pytest.approx(other.error)
    assert one.mean < 0 < one.error
    assert one.z(1.0) == pytest.approx(-other.z(-1.0))


@pytest.mark.parametrize("metric", ["macro_f1", "matthews"])
def test_the_bootstrap_tells_how_scores_scatter(metric: str) -> None:
    # The error of a difference is the deviation of differences over test sets.
    seen, told = [], []
    for seed in range(120):
        random = np.random.default_rng([9, seed])
        labels = random.integers(3, size=300)
        both = [np.where(random.random(300) < 0.3, random.integers(3, size=300), labels) for _ in range(2)]
        a, b = (Outcomes.predicted(p, labels, metric=metric, model="m", task="t", protocol="probe") for p in both)
        seen.append(b.value - a.value)
        if seed < 12:
            told.append(estimate([a], [b]).error)
    assert np.mean(told) == pytest.approx(np.std(seen), rel=0.2)


def test_one_seed_of_accuracy_agrees_with_the_score_test() -> None:
    old, new = drawn(3, 4000, flips=0.1, drop=0.02)
    found = estimate([outcomes(old)], [outcomes(new)])
    exact = compare([outcomes(old)], [outcomes(new)]).tasks[0].difference
    assert isinstance(exact, Matched)
    assert found.mean == pytest.approx(exact.mean)
    assert found.interval(1.96) == pytest.approx(exact.interval(1.96), abs=0.03)


def test_seeds_that_differ_widen_the_interval() -> None:
    # Every seed has a true difference of its own; an interval over the mean of five must hold the mean of all seeds.
    held, widths = 0, []
    for run in range(200):
        random = np.random.default_rng([4, run])
        old, new = [], []
        for seed in range(5):
            own = 0.02 * random.standard_normal()
            a, b = drawn([run, seed], 600, flips=0.1, drop=0.0)
            b = b & (random.random(600) >= max(0.0, own) / 0.8) | (~b & (random.random(600) < max(0.0, -own) / 0.2))
            old.append(outcomes(a, seed=seed))
            new.append(outcomes(b, seed=seed, model="new"))
        found = compare(old, new).tasks[0].difference
        assert isinstance(found, Estimate)
        low, high = found.interval(1.96)
        held += low <= 0 <= high
        widths.append(high - low)
    assert held / 200 >= 0.92
    # One seed alone knows nothing of the others: its interval is about the examples only.
    assert np.mean(widths) > 1.0


def test_a_seed_that_is_repeated_adds_nothing() -> None:
    old, new = drawn(5, 1000, flips=0.1, drop=0.01)
    one = estimate([outcomes(old)], [outcomes(new)])
    three = estimate([outcomes(old, seed=s) for s in range(3)], [outcomes(new, seed=s) for s in range(3)])
    assert (three.mean, three.error) == pytest.approx((one.mean, one.error))


@given(st.floats(-5, 5), st.floats(0.01, 3), st.sampled_from([3.0, 20.0, float("inf")]), st.floats(0.1, 5))
def test_tests_and_intervals_agree(mean: float, error: float, freedom: float, drop: float) -> None:
    found = Estimate(mean, error, freedom)
    low, high = found.interval(1.96)
    if abs(low + drop) > 1e-6 and abs(high + drop) > 1e-6:
        assert (low > -drop) == (found.z(drop) > 1.96)
        assert (high < -drop) == (found.z(drop) < -1.96)


def test_models_without_a_difference() -> None:
    found = Estimate(0.0, 0.0)
    assert found.interval(1.96) == (0.0, 0.0)
    assert found.z(1.0) == float("inf")
    same = [said(1, 100, 3, "macro_f1", 0.2)]
    assert estimate(same, same).mean == 0
    assert estimate(same, same).error == pytest.approx(1.0)  # one flip of a hundred could have been missed


def test_divergence_is_zero_for_one_model_and_known_for_two() -> None:
    def with_logs(p: list[float]) -> Outcomes:
        logs = np.log(np.tile(p, (4, 1))).astype(np.float32)
        return outcomes([1, 1, 1, 1], log_probabilities=logs)

    even, odd = with_logs([0.5, 0.5]), with_logs([0.9, 0.1])
    assert divergence([even], [even]) == Estimate(0.0, 0.0)
    found = divergence([even], [odd])
    assert found is not None
    assert found.mean == pytest.approx(0.5 * np.log(0.5 / 0.9) + 0.5 * np.log(0.5 / 0.1), rel=1e-5)
    assert divergence([even], [outcomes([1, 1, 1, 1])]) is None
    never = with_logs([1.0 - 1e-7, 1e-7])
    excluded = outcomes([1] * 4, log_probabilities=np.tile(np.array([0.0, -np.inf], np.float32), (4, 1)))
    assert np.isfinite(divergence([never], [excluded]).mean)  # type: ignore[union-attr]
