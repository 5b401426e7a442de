"""Which of several numbers are out of line with the others: of contributions that should be alike in size."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

_FEWEST = 4  # of three, two may be wrong
_DEVIATIONS = 1.4826  # of a normal distribution, 1.4826 MAD is one standard deviation
_LEAST = 0.1  # of a logarithm: where peers agree to 10 %, twice that is no reason for suspicion


def distances(values: Sequence[float]) -> list[float]:
    """How far each value is from its peers, in robust standard deviations of the logarithm.

        |log x - median log x| / max(1.4826 MAD, 0.1)        MAD = median |log x - median log x|

    Up to half of the values may be arbitrarily wrong without moving either median far.

    Args:
        values: not negative, on any scale. One that is 0 is farther than any threshold, unless most are.

    Returns:
        One a value; all 0 where there are fewer than four, which say nothing of one another.

    Source: Hampel's identifier; Davies and Gather, "The identification of multiple outliers", JASA 88 (1993).

    >>> [round(d, 1) for d in distances([1.0, 1.1, 0.9, 1.05, 20.0])]
    [0.5, 0.5, 1.5, 0.0, 29.5]
    """
    if len(values) < _FEWEST:
        return [0.0] * len(values)
    tiny = float(np.finfo(np.float64).tiny)
    logs = np.log(np.maximum(np.asarray(values, np.float64), tiny))
    centre = float(np.median(logs))
    away = np.abs(logs - centre)
    scale = max(_DEVIATIONS * float(np.median(away)), _LEAST)
    return [float(d) / scale for d in away] if math.isfinite(scale) else [0.0] * len(values)
