"""The weighted mean direction of several models, at the mean of their lengths."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from ...errors import FuseError
from .gram import RESOLVED, Matrix, about_base, combine, gram
from .method import Array, Scan


def multislerp(
    models: Iterable[Array],
    base: Array | None,
    *,
    weight: Sequence[float],
    normalize_weights: bool = True,
    eps: float = 1e-8,
    known: Sequence[float],
) -> Array:
    """The models' weighted mean direction on a sphere, at the weighted mean of their lengths.

        u_i = v_i / (|v_i| + eps),   m = sum_i w_i u_i,   out = (sum_i w_i |v_i|) m / |m|          (+ base)

    over flattened tensors, v_i = t_i; with a base v_i = t_i - base, and the base is added again.

    Args:
        models: one block of each model, taken one at a time.
        base: the same block of the base, or None.
        weight: w_i, one for each model; no unit.
        normalize_weights: divide the weights by their sum.
        eps: keeps the division of a zero vector from failing.
        known: the coefficients, from `multislerp_shares`.

    Returns:
        An array of that shape and dtype. mergekit's `multislerp` goes on to project the u_i to the tangent space at m,
        take their weighted mean there and project it back; that mean is zero (sum_i w_i (u_i - <u_i, m> m / |m|^2) = m
        - m), so what its steps add is rounding, which this leaves out. A single model is returned as it is. Two models
        whose directions cancel are mixed linearly; more are refused. Directions cancel here when |m| is below 1e-4
        sum_i |w_i|, there below 1e-8, which float32 does not resolve.

    Source: mergekit's documentation (Goddard, Multi-SLERP, 2025); there is no paper.

    >>> from .gram import at_hand
    >>> a, b = np.array([2.0, 0.0]), np.array([0.0, 2.0])
    >>> multislerp([a, b], None, weight=[1, 1], known=multislerp_shares(at_hand([a, b]), weight=[1, 1])).round(4)
    array([1.4142, 1.4142])
    """
    return combine(models, base, known)


def multislerp_shares(
    scan: Scan, *, weight: Sequence[float], normalize_weights: bool = True, eps: float = 1e-8
) -> tuple[float, ...]:
    """The coefficients of the base (where there is one) and of the models."""
    square, based, tensor = gram(scan)
    shares = _shares(square, np.asarray(weight, np.float64), normalize_weights, eps, tensor)
    return about_base(shares) if based else tuple(map(float, shares))


def _shares(square: Matrix, weight: Matrix, normalize: bool, eps: float, tensor: str) -> Matrix:
    if len(weight) == 1:
        return np.ones(1)
    if normalize:
        weight = weight / weight.sum()
    norms = np.sqrt(np.diag(square))
    unit = weight / (norms + eps)  # coefficients of m
    length = float(np.sqrt(max(0.0, float(unit @ square @ unit))))
    if length <= max(eps, RESOLVED * float(np.abs(weight).sum())):
        if len(weight) == 2:
            return weight
        raise FuseError(
            "the models' directions cancel",
            where=f"multislerp: {tensor}",
            got=f"a weighted mean of length {length:.1e}",
            hint="other weights",
        )
    return np.asarray(unit * (norms @ weight / length))
