"""Differences that flips alone do not tell: other metrics, and several seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..outcomes import Outcomes
from .resampling import resampled
from .tails import critical, student_critical, student_upper, upper


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its standard error.

    >>> [round(x, 2) for x in Estimate(-1.0, 0.5).interval(1.96)]
    [-1.98, -0.02]
    """

    mean: float
    error: float
    freedom: float = math.inf

    def z(self, drop: float) -> float:
        """How far the mean is above -drop, as a z of the same p-value."""
        above = self.mean + drop
        if self.error == 0:
            return math.copysign(math.inf, above) if above else 0.0
        t = above / self.error
        return t if math.isinf(self.freedom) else math.copysign(critical(student_upper(abs(t), self.freedom)), t)

    def interval(self, z: float) -> tuple[float, float]:
        """The interval that a normal of critical value `z` would give, by Student where there are few seeds."""
        if self.error == 0:
            return self.mean, self.mean
        half = self.error * student_critical(upper(z), self.freedom)
        return self.mean - half, self.mean + half

    def keeps(self, drop: float) -> float:
        """p-value of "it lost `drop` or more"."""
        return upper(self.z(drop))

    def drops(self, drop: float) -> float:
        """p-value of "it lost `drop` or less"."""
        return upper(-self.z(drop))


def estimate(old: Sequence[Outcomes], new: Sequence[Outcomes]) -> Estimate:
    """Mean difference over seeds, with the error of a finite test set and of a finite number of seeds.

        var = V + max(0, S^2 - R) / s        R = (V1 - V) s / (s - 1)

    with s seeds, S^2 the variance of their differences, V1 the variance of one seed's difference due to the examples,
    V that of the mean over seeds: the two-way layout with random examples and random seeds, R being their interaction,
    which S^2 holds too. Freedom is Satterthwaite's. V is the variance of a mean where the metric is one, else that of
    paired bootstrap resamples. Where examples are right or wrong it is never less than that of one flip, so that a few
    examples without one prove nothing.

    Args:
        old: outcomes of the old model, one a seed, on the same examples in the same order.
        new: outcomes of the new model, the same seeds.

    Source: Cornfield and Tukey, Annals of Mathematical Statistics 27 (1956); Satterthwaite, Biometrics 2 (1946).
    """
    each = np.array([b.value - a.value for a, b in zip(old, new, strict=True)])
    of_mean, of_one = _variances(old, new)
    n, seeds = len(old[0]), len(each)
    if old[0].classes:
        of_mean = max(of_mean, (100.0 / n) ** 2)
    if seeds == 1:
        return Estimate(float(each[0]), math.sqrt(of_mean))
    spread = float(each.var(ddof=1))
    interaction = max(0.0, of_one - of_mean) * seeds / (seeds - 1)
    between = max(0.0, spread - interaction) / seeds
    total = of_mean + between
    freedom = total**2 / ((spread / seeds) ** 2 / (seeds - 1)) if between > 0 else math.inf
    return Estimate(float(each.mean()), math.sqrt(total), freedom)


def _variances(old: Sequence[Outcomes], new: Sequence[Outcomes]) -> tuple[float, float]:
    """Variance, due to the examples, of the mean difference over seeds; and of one seed's, on average."""
    if old[0].metric in {"macro_f1", "matthews", "pearson", "spearman"}:
        draws = resampled(old, new)  # [seed, resample]
        return float(draws.mean(0).var(ddof=1)), float(draws.var(axis=1, ddof=1).mean())
    unit = 100.0 if old[0].classes else 1.0
    differences = unit * np.stack([b.scores - a.scores for a, b in zip(old, new, strict=True)])  # [seed, n]
    n = differences.shape[1]
    if n < 2:
        return math.inf, math.inf
    return float(differences.mean(0).var(ddof=1) / n), float(differences.var(axis=1, ddof=1).mean() / n)


def divergence(old: Sequence[Outcomes], new: Sequence[Outcomes]) -> Estimate | None:
    """KL(old || new) in nats an example, a mean over examples and seeds; None where log-probabilities are missing.

    KL = sum_c p_old(c) (log p_old(c) - log p_new(c))
    """
    if any(o.log_probabilities is None for o in (*old, *new)):
        return None
    each = np.mean([_kl(a, b) for a, b in zip(old, new, strict=True)], axis=0)  # [n]
    error = math.sqrt(each.var(ddof=1) / len(each)) if len(each) > 1 else math.inf
    return Estimate(float(each.mean()), error)


def _kl(old: Outcomes, new: Outcomes) -> npt.NDArray[np.float64]:
    # A class that the new model excludes altogether would make everything infinite: e^-80 is less than any float32 softmax.
    p, q = (np.maximum(np.asarray(o.log_probabilities, dtype=np.float64), -80.0) for o in (old, new))
    found: npt.NDArray[np.float64] = (np.exp(p) * (p - q)).sum(axis=1)
    return np.maximum(found, 0.0)
