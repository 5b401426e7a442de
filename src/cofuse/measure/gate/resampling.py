"""The paired bootstrap for metrics that are no means: macro F1, Matthews, correlations."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from ...tasks.metrics import METRICS
from ..outcomes import Outcomes

RESAMPLES = 1000
_CELLS = 4_000_000  # counts held at once

Array = npt.NDArray[np.float64]
Scorer = Callable[[Array, Array, Array], Array]  # right ones, predictions, labels: counts by class [draws, classes]


def resampled(old: Sequence[Outcomes], new: Sequence[Outcomes], *, resamples: int = RESAMPLES) -> Array:
    """Differences of the metric on examples drawn with replacement [seed, resample], in points.

    Examples are drawn once for both models and all seeds, because they are what is shared. The generator's seed is
    fixed: the same outcomes give the same draws.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), chapter 6.
    """
    n = len(old[0])
    random = np.random.default_rng(20221201)
    counted = _COUNTED.get(old[0].metric)
    found = np.empty((len(old), resamples))
    step = max(1, _CELLS // n) if counted else 1
    for at in range(0, resamples, step):
        drawn = random.integers(n, size=(min(step, resamples - at), n))
        for s, (before, after) in enumerate(zip(old, new, strict=True)):
            found[s, at : at + len(drawn)] = (
                _many(counted, after, drawn) - _many(counted, before, drawn)
                if counted
                else _one(after, drawn[0]) - _one(before, drawn[0])
            )
    return found


def _one(outcomes: Outcomes, rows: npt.NDArray[np.int64]) -> float:
    labels, predictions = np.asarray(outcomes.labels)[rows], np.asarray(outcomes.predictions)[rows]
    return METRICS[outcomes.metric](predictions, labels)


def _many(score: Scorer, outcomes: Outcomes, drawn: npt.NDArray[np.int64]) -> Array:
    """A score of counts for every draw [draws, n] -> [draws]."""
    labels, predictions = np.asarray(outcomes.labels), np.asarray(outcomes.predictions)
    classes, codes = np.unique(np.concatenate([labels, predictions]), return_inverse=True)
    k, offset = len(classes), np.arange(len(drawn))[:, None] * len(classes)
    true, said = codes[: len(labels)][drawn], codes[len(labels) :][drawn]  # [draws, n]

    def counts(of: npt.NDArray[np.int64], weights: Array | None = None) -> Array:
        found = np.bincount((of + offset).ravel(), weights=weights, minlength=k * len(drawn))
        return found.reshape(len(drawn), k).astype(np.float64)

    return score(counts(true, (true == said).ravel().astype(np.float64)), counts(said), counts(true))


def _macro_f1(hits: Array, said: Array, true: Array) -> Array:
    """Mean over the classes that occur of 2 tp / (said + true), in percent."""
    there = (said + true) > 0
    each = np.divide(2 * hits, said + true, out=np.zeros_like(hits), where=there)
    return np.asarray(100.0 * each.sum(1) / there.sum(1))


def _matthews(hits: Array, said: Array, true: Array) -> Array:
    """(c n - p t) / sqrt((n^2 - p p) (n^2 - t t)), in percent; 0 where either side has one class."""
    n = true.sum(1)
    above = hits.sum(1) * n - (said * true).sum(1)
    below = (n**2 - (said**2).sum(1)) * (n**2 - (true**2).sum(1))
    found: Array = np.divide(100.0 * above, np.sqrt(below), out=np.zeros_like(above), where=below > 0)
    return found


_COUNTED: dict[str, Scorer] = {"macro_f1": _macro_f1, "matthews": _matthews}
