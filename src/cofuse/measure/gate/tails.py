"""The normal and Student's distributions, as tails: what critical values and p-values are made of."""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist

_NORMAL = NormalDist()


def upper(z: float) -> float:
    """P(Z > z) of a standard normal, accurate far out.

    >>> round(upper(1.959964), 6)
    0.025
    """
    return 0.5 * math.erfc(z / math.sqrt(2))


@lru_cache(maxsize=4096)
def critical(tail: float) -> float:
    """The z above which a standard normal lies with probability `tail`.

    >>> round(critical(0.025), 4)
    1.96
    """
    if tail <= 0:
        return math.inf
    return -_NORMAL.inv_cdf(tail) if tail < 1 else -math.inf


def student_upper(t: float, freedom: float) -> float:
    """P(T > t) of Student's distribution."""
    if math.isinf(freedom):
        return upper(t)
    from scipy.stats import t as student

    return float(student.sf(t, freedom))


def student_critical(tail: float, freedom: float) -> float:
    """The t above which Student's distribution lies with probability `tail`."""
    if math.isinf(freedom):
        return critical(tail)
    from scipy.stats import t as student

    return float(student.isf(tail, freedom))
