"""Whether predicted changes are the measured ones, over many changes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...errors import TaskError
from ...tasks.metrics import pearson, spearman


@dataclass(frozen=True, slots=True)
class Correlation:
    """How predictions and measurements of many changes go together.

    Attributes:
        n: how many pairs.
        pearson: of the logarithms.
        spearman: of the ranks.
        slope: of log measured on log predicted, by least squares: 1 where one is a constant times the other.
        ratio: the geometric mean of measured over predicted: 1 where they are equal.
        spread: the standard deviation of log10(measured / predicted): 0.3 is a factor of two.
    """

    n: int
    pearson: float
    spearman: float
    slope: float
    ratio: float
    spread: float


def correlate(predicted: npt.ArrayLike, measured: npt.ArrayLike) -> Correlation:
    """Compare predictions with measurements, both in nats and above 0.

    Raises:
        TaskError: there are fewer than two pairs, or a value is not a positive number.

    >>> correlate([1e-4, 1e-2, 1], [2e-4, 2e-2, 2])
    Correlation(n=3, pearson=1.0, spearman=1.0, slope=1.0, ratio=2.0, spread=0.0)
    """
    x, y = (np.asarray(values, np.float64) for values in (predicted, measured))
    if len(x) != len(y) or len(x) < 2:
        raise TaskError(
            "a correlation needs pairs", got=f"{len(x)} predicted, {len(y)} measured", expected="two or more"
        )
    if not (np.isfinite(x).all() and np.isfinite(y).all() and (x > 0).all() and (y > 0).all()):
        raise TaskError("a logarithm needs a positive number", got=float(min(x.min(), y.min())))
    a, b = np.log10(x), np.log10(y)
    spread = np.square(a - a.mean()).sum()
    slope = float(((a - a.mean()) * (b - b.mean())).sum() / spread) if spread else 0.0
    return Correlation(
        n=len(x),
        pearson=round(pearson(a, b) / 100, 12),
        spearman=round(spearman(x, y) / 100, 12),
        slope=round(slope, 12),
        ratio=round(float(10 ** (b - a).mean()), 12),
        spread=round(float((b - a).std()), 12),
    )
