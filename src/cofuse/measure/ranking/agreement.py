"""How well a cheap ranking tells a dear one: rank correlations with intervals, and what going by it costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .ranking import Ranking

RESAMPLES = 2000
FEWEST = 3  # models: two are in order or not, which says nothing
TOPS = (1, 3)

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Correlated:
    """A correlation with its 95 % percentile bootstrap interval over models."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Agreement:
    """One ranking as a predictor of another, within an architecture.

    Attributes:
        pretrained: the architecture's pretrained model.
        predictor: label of the cheap ranking.
        reference: label of the dear one.
        models: names, in the order of the gains.
        predicted: gains by the predictor.
        true: gains by the reference.
        spearman: correlation of ranks.
        kendall: tau-b.
        regret: of taking the best of the predictor's first 1 and 3: gain of the truly best minus that, in points.
        seconds: that the two took.
    """

    pretrained: str
    predictor: str
    reference: str
    models: tuple[str, ...]
    predicted: tuple[float, ...]
    true: tuple[float, ...]
    spearman: Correlated
    kendall: Correlated
    regret: dict[int, float]
    seconds: tuple[float, float]


def agreements(rankings: Sequence[Ranking], reference: str = "finetune") -> tuple[Agreement, ...]:
    """Every other ranking against the reference: full finetuning on the most tasks that are known; none without it.

    Source: arXiv 2211.00107 (a linear probe ranks bases; regret of the first and of the first three).
    """
    dear = [r for r in rankings if r.protocol == reference]
    if not dear:
        return ()
    known = max(dear, key=lambda r: len(r.tasks))
    found = []
    for name in known.architectures:
        true = {r.model: r for r in known.of(name)}
        for other in (r for r in rankings if r is not known):
            predicted = {r.model: r for r in other.of(name)}
            both = sorted(true.keys() & predicted.keys())
            if len(both) < FEWEST:
                continue
            x = np.array([predicted[m].gain.mean for m in both])
            y = np.array([true[m].gain.mean for m in both])
            found.append(
                Agreement(
                    name,
                    other.label,
                    known.label,
                    tuple(both),
                    tuple(x.tolist()),
                    tuple(y.tolist()),
                    _correlated(spearman, x, y),
                    _correlated(kendall, x, y),
                    {k: regret(x, y, k) for k in TOPS},
                    (sum(predicted[m].seconds for m in both), sum(true[m].seconds for m in both)),
                )
            )
    return tuple(found)


def spearman(x: Array, y: Array) -> float:
    """Correlation of ranks, equal values sharing their mean rank; 0 where either side is constant.

    >>> spearman(np.array([1.0, 2.0, 9.0]), np.array([0.0, 5.0, 6.0]))
    1.0
    """
    from ...tasks.metrics import spearman as percent

    return round(percent(x, y) / 100, 12)


def kendall(x: Array, y: Array) -> float:
    """tau-b: (concordant - discordant pairs) / sqrt(pairs untied in x * pairs untied in y); 0 where either is constant.

    >>> round(kendall(np.array([1.0, 2.0, 3.0]), np.array([1.0, 3.0, 2.0])), 6)
    0.333333
    """
    a, b = (np.sign(v[:, None] - v[None, :]) for v in (x, y))
    below = np.sqrt(np.square(a).sum() * np.square(b).sum())
    return float((a * b).sum() / below) if below else 0.0


def regret(predicted: Array, true: Array, first: int) -> float:
    """max(true) - max of true over the `first` best by prediction; of equal predictions the worst counts.

    >>> regret(np.array([3.0, 2.0, 1.0]), np.array([1.0, 0.0, 4.0]), 2)
    3.0
    """
    order = np.lexsort((true, -predicted))[:first]
    return float(true.max() - true[order].max())


def _correlated(of: Callable[[Array, Array], float], x: Array, y: Array) -> Correlated:
    """The generator's seed is fixed; draws that leave one side constant order nothing and are left out."""
    random = np.random.default_rng(20221107)
    drawn = [random.integers(len(x), size=len(x)) for _ in range(RESAMPLES)]
    values = [of(x[rows], y[rows]) for rows in drawn if np.ptp(x[rows]) and np.ptp(y[rows])]
    low, high = np.percentile(values, [2.5, 97.5]) if values else (-1.0, 1.0)
    return Correlated(of(x, y), float(low), float(high))
