"""Means with bootstrap intervals over the seeds of a study, its draws and its tasks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

RESAMPLES = 4000


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and its 95 % percentile interval; `n` counts seeds times draws."""

    mean: float
    low: float
    high: float
    n: int


def interval(values: npt.NDArray[np.float64], *, resamples: int = RESAMPLES) -> Interval:
    """Mean over all, with a 95 % percentile bootstrap interval.

    Tasks, seeds and draws are resampled with replacement: seeds once for all tasks, because a seed's base is one model;
    draws within each task and seed. A dimension of length one is taken as it is, so its variation is not in the
    interval.

    Args:
        values: scores or paired differences [task, seed, draw].
        resamples: bootstrap resamples; the generator's seed is fixed, so the same values give the same interval.

    >>> interval(np.array([[[1.0], [1.0]]]))
    Interval(mean=1.0, low=1.0, high=1.0, n=2)
    """
    tasks, seeds, draws = values.shape
    random = np.random.default_rng(20221201)
    t = random.integers(tasks, size=(resamples, tasks, 1, 1)) if tasks > 1 else np.zeros((resamples, 1, 1, 1), np.int64)
    s = random.integers(seeds, size=(resamples, 1, seeds, 1))
    d = random.integers(draws, size=(resamples, tasks, seeds, draws))
    means = values[t, s, d].mean(axis=(1, 2, 3))
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(values.mean()), float(low), float(high), seeds * draws)
