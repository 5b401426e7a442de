"""Spherical interpolation between two models by their weights: of tensors, rows or columns, or of task vectors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import array_api_compat
import numpy as np

from .gram import about_base, combine, gram, sum_in_order
from .method import Array, Place, Scan

# Vectors whose angle has a squared sine of at most this are mixed linearly. Between nearly parallel ones the arc and
# the line are the same to 1e-7; between opposed ones the arc's direction would be made of rounding.
COLINEAR = 1e-6
LEAST_NORM = 1e-7


def nuslerp(
    models: Iterable[Array],
    base: Array | None,
    *,
    weight: Sequence[float],
    nuslerp_flatten: bool = True,
    nuslerp_row_wise: bool = False,
    known: Any,
    place: Place,
) -> Array:
    """The point of the arc from the first model to the second that their weights ask for.

        t = w_2 / (w_1 + w_2),   out = (sin((1 - t) theta) v_1 + sin(t theta) v_2) / sin(theta)          (+ base)

    v_i = t_i; with a base v_i = t_i - base, and the base is added again. Linear where the two are (anti)parallel.

    Args:
        models: whole rows of the two models, [rows, entries].
        base: the same of the base, or None.
        weight: w_1 and w_2; no unit. t is 1/2 when they sum to less than 1e-6.
        nuslerp_flatten: one angle for the whole tensor.
        nuslerp_row_wise: when not flattened, an angle for each vector along the first dimension (the columns of a
            matrix), instead of the last (its rows): mergekit's naming. Vectors and scalars are whole either way.
        known: the coefficients, from `nuslerp_ends`.
        place: says how long the last dimension is.

    Returns:
        An array of that shape and dtype. As mergekit's `nuslerp`, save that vectors count as colinear when the squared
        sine of their angle is at most 1e-6, where mergekit says 1e-16, which its float32 cannot tell from rounding:
        opposed vectors in that gap are mixed linearly here and give a multiple of rounding noise there.

    Source: mergekit's documentation; Shoemake 1985 as in `slerp`.

    >>> from .gram import at_hand
    >>> a, b = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])
    >>> known = nuslerp_ends(at_hand([a, b]), weight=[1, 1])
    >>> nuslerp([a, b], None, weight=[1, 1], known=known, place=Place()).round(4)
    array([[0.7071, 0.7071]])
    """
    if isinstance(known, tuple):
        return combine(models, base, known)
    first, second = models
    shape = first.shape
    if known is None:
        length = place.shape[-1] if place.shape else 1
        first, second = first.reshape(-1, length), second.reshape(-1, length)
        base = None if base is None else base.reshape(-1, length)
    if base is not None:
        first -= base
        second -= base
    xp: Any = array_api_compat.array_namespace(first)
    if known is None:
        ends = interpolation(_share(weight), *_products(first, second, axis=-1, keepdims=True))
    else:
        ends = tuple(xp.asarray(end, device=array_api_compat.device(first)) for end in known)
    # a x + b y = (a + b) x + b (y - x): what the two agree on is kept.
    second -= first
    second *= xp.astype(ends[1], first.dtype)
    first *= xp.astype(ends[0] + ends[1], first.dtype)
    first += second
    if base is not None:
        first += base
    return first.reshape(shape)


def nuslerp_ends(
    scan: Scan, *, weight: Sequence[float], nuslerp_flatten: bool = True, nuslerp_row_wise: bool = False
) -> Any:
    """The coefficients: a tuple of numbers for a whole tensor, an array [2, columns] for columns, None for rows."""
    t = _share(weight)
    if nuslerp_flatten:
        ((aa, ab), (_, bb)), based, _ = gram(scan)
        ends = tuple(map(float, interpolation(t, aa, bb, ab)))
        return about_base(ends) if based else ends
    if not nuslerp_row_wise:
        return None
    found = sum_in_order(scan, _columns)
    return None if found is None else np.stack(interpolation(t, *found))


def _columns(models: Iterable[Array], base: Array | None, place: Place) -> Any:
    """The squares and products of columns, [3, columns]; of a vector, which is one row, its own as one."""
    first, second = models
    xp: Any = array_api_compat.array_namespace(first)
    if base is not None:
        first -= base
        second -= base
    found = _products(first, second, axis=0 if len(place.shape) > 1 else None)
    return np.asarray(array_api_compat.to_device(xp.stack(found), "cpu"))


def _products(first: Array, second: Array, **along: Any) -> list[Any]:
    """The squares of two and their products, in float64, summed along an axis."""
    xp: Any = array_api_compat.array_namespace(first)
    wide = xp.astype(first, xp.float64)
    other = xp.astype(second, xp.float64)
    return [xp.sum(x * y, **along) for x, y in ((wide, wide), (other, other), (wide, other))]


def interpolation(t: float, square_a: Any, square_b: Any, product: Any) -> tuple[Any, Any]:
    """The coefficients of two vectors from their inner products, elementwise; scalars or arrays in float64.

    >>> interpolation(0.25, np.float64(4), np.float64(4), np.float64(4))[0].round(6)
    np.float64(0.75)
    """
    xp: Any = array_api_compat.array_namespace(square_a) if hasattr(square_a, "shape") and square_a.shape else np
    norm_a, norm_b = xp.sqrt(square_a), xp.sqrt(square_b)
    cosines = xp.clip(product / (xp.clip(norm_a, LEAST_NORM, None) * xp.clip(norm_b, LEAST_NORM, None)), -1, 1)
    colinear = 1 - cosines**2 <= COLINEAR
    theta = xp.arccos(xp.where(colinear, 0.0, cosines))
    sine = xp.sin(theta)
    return (
        xp.where(colinear, 1 - t, xp.sin((1 - t) * theta) / sine),
        xp.where(colinear, t, xp.sin(t * theta) / sine),
    )


def _share(weight: Sequence[float]) -> float:
    total = sum(weight)
    return 0.5 if abs(total) < 1e-6 else weight[1] / total
