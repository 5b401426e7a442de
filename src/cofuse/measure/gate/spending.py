"""Critical values for looking more than once: Lan and DeMets' spending of the error over the information."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from .tails import critical, upper

_POINTS = 601  # of the grid, odd for Simpson's rule
_FAR = 8.0  # standard deviations: beyond it lies less than 1e-15
_NOTHING = 1e-12  # error that is not worth spending

Array = npt.NDArray[np.float64]


def spent(tail: float, information: float) -> float:
    """Error that may be spent up to a share of the information; little at first, as O'Brien and Fleming would.

        a(t) = 2 (1 - Phi(z / sqrt(t))),  z = the point above which a normal lies with probability tail / 2

    Source: Lan and DeMets, Biometrika 70 (1983), spending function 1.

    >>> round(spent(0.025, 1.0), 6)
    0.025
    """
    return 2 * upper(critical(tail / 2) / math.sqrt(information)) if 0 < information < 1 else tail * (information > 0)


@lru_cache(maxsize=1024)
def boundary(looks: tuple[float, ...], tail: float) -> float:
    """The critical value of the last of several looks at data that grow, one-sided.

    Whenever somebody looks and however they decide to stop, the probability that a true hypothesis is ever refused is
    `tail`: a test that refuses it where z is above this value at any look has level `tail` (asymptotically: the
    statistics of looks are normal with independent increments). One look at everything is the ordinary test.

    Args:
        looks: shares of the planned information at each look so far, rising, the last at most 1.
        tail: the error of all looks together.

    Source: Lan and DeMets (1983); the recursion is Armitage, McPherson and Rowe's, Journal of the Royal Statistical
    Society A 132 (1969).

    >>> round(boundary((1.0,), 0.025), 3), round(boundary((0.5, 1.0), 0.025), 3)
    (1.96, 1.969)
    """
    return _walk(looks, tail)[0]


@lru_cache(maxsize=4096)
def _walk(looks: tuple[float, ...], tail: float) -> tuple[float, Array, Array]:
    """The critical value of the last look; places [points] of the score process not refused there, with weights."""
    now = looks[-1]
    if len(looks) == 1:
        new = spent(tail, now)
        c = critical(new) if new > _NOTHING else math.inf
        places, step = _grid(c, now)
        return c, places, step * _density(places, now)
    before, weights = _walk(looks[:-1], tail)[1:]
    passed = now - looks[-2]
    new = spent(tail, now) - spent(tail, looks[-2])
    c = math.inf if new <= _NOTHING else _solve(before, weights, now, passed, new)
    places, step = _grid(c, now)
    density = (weights[:, None] * _density(places[None, :] - before[:, None], passed)).sum(0)
    return c, places, step * density


def _solve(before: Array, weights: Array, now: float, passed: float, new: float) -> float:
    """The c with P(not refused before, S > c sqrt(now)) = new, by halving."""
    from scipy.special import ndtr

    low, high = -_FAR, _FAR
    for _ in range(60):
        middle = (low + high) / 2
        crossed = float((weights * ndtr((before - middle * math.sqrt(now)) / math.sqrt(passed))).sum())
        low, high = (middle, high) if crossed > new else (low, middle)
    return (low + high) / 2


def _grid(c: float, information: float) -> tuple[Array, Array]:
    """Places of the score process below the boundary, and Simpson's weights."""
    scale = math.sqrt(information)
    places = np.linspace(-_FAR * scale, min(c, _FAR) * scale, _POINTS)
    simpson = np.ones(_POINTS)
    simpson[1:-1:2], simpson[2:-1:2] = 4, 2
    return places, simpson * (places[1] - places[0]) / 3


def _density(x: Array, variance: float) -> Array:
    return np.asarray(np.exp(-x * x / (2 * variance)) / math.sqrt(2 * math.pi * variance))
