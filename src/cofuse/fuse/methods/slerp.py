"""Spherical interpolation between a base and one model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import acos, sin, sqrt

from .gram import combine, cosine, gram
from .method import Array, Scan

# Vectors more nearly parallel (or opposed) than this are mixed linearly; norms below the other count as no direction.
PARALLEL = 0.9995
NO_NORM = 1e-8


def slerp(models: Iterable[Array], base: Array | None, *, t: float, known: Sequence[float]) -> Array:
    """The point at a share t of the arc from the base to the model.

        out = (sin((1 - t) theta) base + sin(t theta) model) / sin(theta)
        cos(theta) = <base, model> / (|base| |model|)

    over the flattened tensor; linear, (1 - t) base + t model, where |cos(theta)| > 0.9995.

    Args:
        models: one block of the one model.
        base: the same block of the base, which is the end at t = 0.
        t: where between the two; no unit. Beyond [0, 1] the arc goes on.
        known: the two coefficients, from `slerp_ends`.

    Returns:
        An array of that shape and dtype. As mergekit's `slerp` (its threshold; a vector of norm at most 1e-8 counts as
        perpendicular to all), the angle from inner products summed in float64.

    Source: Shoemake, Animating rotation with quaternion curves, SIGGRAPH 1985, sec. 3.3.

    >>> import numpy as np
    >>> from .gram import at_hand
    >>> a, b = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    >>> slerp([b], a, t=0.5, known=slerp_ends(at_hand([b], a), t=0.5)).round(4)
    array([0.7071, 0.7071])
    """
    return combine(models, base, known)


def slerp_ends(scan: Scan, *, t: float) -> tuple[float, float]:
    """The coefficients of the base and of the model."""
    (aa, ab), (_, bb) = gram(scan, with_base=True).square
    if min(aa, bb) <= NO_NORM**2:
        # A vector without a length is not normalised there, so its cosine with anything is (nearly) 0.
        dot = ab / ((sqrt(aa) if aa > NO_NORM**2 else 1.0) * (sqrt(bb) if bb > NO_NORM**2 else 1.0))
    else:
        dot = cosine(ab, aa, bb)
    if abs(dot) > PARALLEL:
        return 1 - t, t
    theta = acos(dot)
    return sin((1 - t) * theta) / sin(theta), sin(t * theta) / sin(theta)
