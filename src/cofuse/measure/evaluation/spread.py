"""How far a score would move with other seeds and another test set of the same size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..outcomes import Outcomes

RESAMPLES = 2000
_FEW = 200  # of metrics that have to be computed anew for each


def spread(outcomes: Sequence[Outcomes]) -> tuple[float, float]:
    """A 95 % percentile bootstrap interval of a model's score on a task, over its seeds and the test examples.

    The examples are resampled once for all seeds, which were tested on the same. The generator's seed is fixed.

    Args:
        outcomes: of one task and protocol, one a seed, all on the same examples.

    >>> one = Outcomes.predicted(np.array([0, 1, 1, 1]), np.ones(4), model="m", task="t", protocol="probe")
    >>> spread([one, one])
    (25.0, 100.0)
    """
    first = outcomes[0]
    random = np.random.default_rng(20221201)
    n, seeds = len(first), len(outcomes)
    linear = first.metric == "accuracy" or first.labels is None
    resamples = RESAMPLES if linear else _FEW
    chosen = random.integers(seeds, size=(resamples, seeds))
    if linear:  # a mean of scores: how often each example was drawn is all there is to know
        scale = 100.0 if first.labels is not None else 1.0
        scores = scale * np.stack([o.scores for o in outcomes], axis=1)  # [n, seed]
        values = np.stack([random.multinomial(n, np.full(n, 1 / n)) @ scores / n for _ in range(resamples)])
    else:
        rows = (random.integers(n, size=n) for _ in range(resamples))
        values = np.array([[_value(o, drawn) for o in outcomes] for drawn in rows])
    means = np.take_along_axis(values, chosen, axis=1).mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def _value(outcomes: Outcomes, rows: np.ndarray[tuple[int], np.dtype[np.int64]]) -> float:
    """The metric over rows that may stand there several times, which `Outcomes.take` refuses."""
    from ...tasks.metrics import METRICS

    assert outcomes.labels is not None  # what has none is a mean of scores
    return METRICS[outcomes.metric](np.asarray(outcomes.predictions)[rows], outcomes.labels[rows])
