"""Intervals against a slow twin, and against data whose mean is known."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from cofuse.measure import Interval, interval


def slow(values: npt.NDArray[np.float64], resamples: int, seed: int) -> tuple[float, float]:
    """The same by hand: which tasks, which seeds for all of them, and draws within each."""
    random = np.random.default_rng(seed)
    tasks, seeds, draws = values.shape
    means = []
    for _ in range(resamples):
        which_tasks = [int(random.integers(tasks)) for _ in range(tasks)]
        which_seeds = [int(random.integers(seeds)) for _ in range(seeds)]
        drawn = [
            values[t, s, int(random.integers(draws))] for t in which_tasks for s in which_seeds for _ in range(draws)
        ]
        means.append(sum(drawn) / len(drawn))
    means.sort()
    return means[int(0.025 * resamples)], means[int(0.975 * resamples)]


@pytest.mark.parametrize("shape", [(1, 5, 1), (1, 5, 4), (6, 5, 1), (4, 3, 3), (3, 1, 4), (12, 1, 1)])
def test_intervals_are_those_of_the_slow_twin(shape: tuple[int, int, int]) -> None:
    random = np.random.default_rng(1)
    values = random.normal(size=(shape[0], 1, 1)) + random.normal(size=(1, shape[1], 1)) + random.normal(size=shape)
    got = interval(values)
    low, high = slow(values, 4000, seed=2)
    tolerance = 0.08 * (high - low)
    assert got.low == pytest.approx(low, abs=tolerance)
    assert got.high == pytest.approx(high, abs=tolerance)
    assert got.mean == pytest.approx(values.mean())
    assert got.n == shape[1] * shape[2]


@pytest.mark.parametrize(("tasks", "seeds", "draws"), [(1, 10, 4), (8, 10, 2)])
def test_intervals_hold_the_true_mean_as_often_as_they_say(tasks: int, seeds: int, draws: int) -> None:
    # Known means and variances on two levels: seeds, and draws within them. Few seeds are another matter: the bootstrap
    # of three or four values is too narrow, and nothing in the data can tell.
    random = np.random.default_rng(5)
    hits = 0
    for _ in range(200):
        values = 70 + 2 * random.normal(size=(1, seeds, 1)) + random.normal(size=(tasks, seeds, draws))
        found = interval(values, resamples=500)
        hits += found.low <= 70 <= found.high
    assert 0.88 <= hits / 200 <= 0.99


def test_more_seeds_give_narrower_intervals() -> None:
    random = np.random.default_rng(0)
    values = random.normal(size=(1, 64, 1))
    few, many = interval(values[:, :16]), interval(values)
    assert 1.5 < (few.high - few.low) / (many.high - many.low) < 2.7


def test_what_does_not_vary_has_no_width() -> None:
    assert interval(np.full((3, 2, 4), 7.5)) == Interval(7.5, 7.5, 7.5, 8)
    assert interval(np.array([[[3.0]]])) == Interval(3.0, 3.0, 3.0, 1)
    # One task's level is in the mean, not in the width; the levels of several are.
    one = interval(np.array([[[1.0], [2.0], [3.0]]]))
    assert one.low < one.mean < one.high
    tasks = np.array([[[0.0, 0.0]], [[10.0, 10.0]], [[20.0, 20.0]]])
    assert interval(tasks).low < 5
    assert interval(tasks).high > 15
    assert interval(tasks[1:2]) == Interval(10.0, 10.0, 10.0, 2)


def test_seeds_are_resampled_for_all_tasks_together() -> None:
    # Seeds that move all tasks alike do not average out over tasks; draws do.
    random = np.random.default_rng(0)
    by_seed = np.broadcast_to(random.normal(size=(1, 10, 1)), (20, 10, 1))
    by_draw = random.normal(size=(20, 10, 1))
    together, apart = interval(by_seed), interval(by_draw - by_draw.mean(axis=(1, 2), keepdims=True))
    assert (together.high - together.low) > 2 * (apart.high - apart.low)


def test_the_same_values_give_the_same_interval() -> None:
    values = np.random.default_rng(3).normal(size=(4, 3, 2))
    assert interval(values) == interval(values.copy())
    assert interval(values, resamples=500) != interval(values)
    flipped = interval(-values)
    assert flipped.mean == -interval(values).mean
    assert flipped.low == pytest.approx(-interval(values).high, abs=1e-9)
