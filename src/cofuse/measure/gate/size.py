"""How many examples a margin needs, and which margin so many examples can tell."""

from __future__ import annotations

import math

from .estimate import Estimate
from .matched import Matched, Rate
from .tails import critical

# One-sided confidence of the pilot's discordance: a pilot that saw too few flips would plan too few examples.
_PILOT = 0.1


def strength(confidence: float, power: float, tests: int = 1) -> float:
    """(z_a + z_b)^2: what a margin over its standard error must be, squared.

    Two things are wanted of k tasks: that a drop of twice the margin in one of them is blocked, which is tested at
    a / k; and that all of them pass where nothing changed, which leaves each a k-th of the misses. The larger counts.

    Args:
        confidence: of the intervals; each side errs by half of the rest.
        power: probability of the right decision.
        tests: tasks.
    """
    tail, miss = (1 - confidence) / 2, 1 - power
    block = critical(tail / tests) + critical(miss)
    keep = critical(tail) + critical(miss / tests)
    return max(block, keep) ** 2


def needed(margin: float, discordance: float, *, confidence: float = 0.95, power: float = 0.98, tests: int = 1) -> int:
    """Examples that tell no change from a drop of `margin` points, and a drop of twice that from it.

        n = max(psi, 2 m (1 - 2 m)) (z_a + z_b)^2 / m^2,   m = margin / 100

    psi is the share of examples that flip either way. A drop of 2 m takes at least that many flips, which vary so much.

    Source: Miettinen, Biometrics 24 (1968), the asymptotic formula; the square of the drop is left out of psi, which errs
    to the safe side.

    >>> needed(1.0, 0.1), needed(3.0, 0.1), needed(1.0, 0.1, tests=8)
    (16110, 1790, 22927)
    """
    share = margin / 100.0
    return math.ceil(max(discordance, 2 * share * (1 - 2 * share)) * strength(confidence, power, tests) / share**2)


def tellable(n: int, discordance: float, *, confidence: float = 0.95, power: float = 0.98, tests: int = 1) -> float:
    """The smallest margin in points that `n` examples tell: the inverse of `needed`.

    >>> round(tellable(16110, 0.1), 3)
    1.0
    """
    k = strength(confidence, power, tests)
    return 100.0 * max(math.sqrt(discordance * k / n), 2 * k / (n + 4 * k))


def bounded(accuracy: float, drop: float) -> float:
    """The most examples that can flip where the old accuracy is known and `drop` points are lost, as a share.

        psi <= 2 min(acc, 1 - acc) + |drop| / 100

    Positive flips are among the old errors and negative ones among what was right.

    >>> round(bounded(90.0, 2.0), 4)
    0.22
    """
    right = accuracy / 100.0
    return min(1.0, 2 * min(right, 1 - right) + abs(drop) / 100.0)


def planned(pilot: Matched | Estimate, n: int, margin: float, *, confidence: float, power: float, tests: int) -> int:
    """Examples that a margin needs, by what a pilot of `n` examples saw.

    Where flips are counted, their rate is taken at the upper end of its one-sided 90 % interval. Elsewhere the
    pilot's variance stands for itself.
    """
    if isinstance(pilot, Matched):
        high = Rate(pilot.positive + pilot.negative, n).interval(critical(_PILOT))[1]
        return needed(margin, high / 100.0, confidence=confidence, power=power, tests=tests)
    if math.isinf(pilot.error):
        return n + 1
    return max(1, math.ceil(n * (pilot.error / margin) ** 2 * strength(confidence, power, tests)))
