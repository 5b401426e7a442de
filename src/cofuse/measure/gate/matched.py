"""Differences of accuracy on matched pairs: what flipped decides, by Tango's score test."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .tails import upper

_STEPS = 60  # halvings: more than the digits of a float


@dataclass(frozen=True, slots=True)
class Matched:
    """Flips among examples that two models were both tested on; their difference is in points.

    Args:
        positive: wrong before, right now.
        negative: right before, wrong now.
        n: examples.

    >>> Matched(12, 9, 100).mean
    3.0
    """

    positive: int
    negative: int
    n: int

    @property
    def mean(self) -> float:
        """Accuracy of the new minus that of the old, in points."""
        return 100.0 * (self.positive - self.negative) / self.n

    @property
    def discordance(self) -> float:
        """Share of examples that flipped, either way: what the variance follows."""
        return (self.positive + self.negative) / self.n

    def z(self, drop: float) -> float:
        """The score statistic of "the true difference is -drop"; falls with the damage.

            z = (b - c - n d) / sqrt(n (2 q + d (1 - d)))        d = -drop / 100
            q = (sqrt(B^2 - 8 n C) - B) / 4 n,  B = (2 n - b + c) d - b - c,  C = -c d (1 - d)

        with b positive and c negative flips, q the share of negative flips that is most likely where d is true. Unlike
        Wald's it is sound where few or no examples flipped.

        Source: Tango, Statistics in Medicine 17 (1998), equations 5 to 8.

        >>> round(Matched(0, 0, 400).z(1.0), 3)
        2.01
        """
        return self._score(-drop / 100.0)

    def interval(self, z: float) -> tuple[float, float]:
        """Every difference that the score test does not refuse at the critical value `z`, in points.

        >>> [round(x, 1) for x in Matched(1, 7, 21).interval(1.96)]
        [-51.7, -2.6]
        """
        return 100.0 * self._where(z), 100.0 * self._where(-z)

    def keeps(self, drop: float) -> float:
        """p-value of "it lost `drop` points or more": small where that is refuted."""
        return upper(self.z(drop))

    def drops(self, drop: float) -> float:
        """p-value of "it lost `drop` points or less": small where that is refuted."""
        return upper(-self.z(drop))

    def _score(self, d: float) -> float:
        b, c, n = self.positive, self.negative, self.n
        linear = (2 * n - b + c) * d - b - c
        constant = -c * d * (1 - d)
        root = math.sqrt(max(0.0, linear * linear - 8 * n * constant))
        q = max(0.0, (root - linear) / (4 * n), -d)
        variance = n * (2 * q + d * (1 - d))
        above = b - c - n * d
        if variance <= 0:
            return math.copysign(math.inf, above) if above else 0.0
        return above / math.sqrt(variance)

    def _where(self, z: float) -> float:
        """The difference at which the statistic, which falls with it, is `z`."""
        if math.isinf(z):
            return -math.copysign(1.0, z)
        low, high = -1.0, 1.0
        for _ in range(_STEPS):
            middle = (low + high) / 2
            if self._score(middle) > z:
                low = middle
            else:
                high = middle
        return (low + high) / 2


@dataclass(frozen=True, slots=True)
class Rate:
    """A share of examples, in percent: flips of one kind.

    >>> [round(x, 2) for x in Rate(10, 200).interval(1.96)]
    [2.74, 8.96]
    """

    count: float  # a mean over seeds, where there are several
    n: int

    @property
    def percent(self) -> float:
        """The share."""
        return 100.0 * self.count / self.n

    def interval(self, z: float) -> tuple[float, float]:
        """Wilson's score interval at the critical value `z`, in percent.

        Source: Wilson, Journal of the American Statistical Association 22 (1927).
        """
        if math.isinf(z):
            return 0.0, 100.0
        p, square = self.count / self.n, z * z / self.n
        middle = (p + square / 2) / (1 + square)
        half = math.sqrt(square * p * (1 - p) + square * square / 4) / (1 + square)
        return 100.0 * max(0.0, middle - half), 100.0 * min(1.0, middle + half)
