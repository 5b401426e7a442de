"""Model Stock: how far to go from the base towards the mean, from the angle between the models."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import array_api_compat

from .gram import about_base, combine, cosine, deltas, gram, pairs
from .method import Array, Place, Scan

# The product of two norms counts as at least this much; a denominator smaller than it says nothing.
LEAST = 1e-6


def model_stock(
    models: Iterable[Array],
    base: Array | None,
    *,
    filter_wise: bool = False,
    known: Sequence[float] | None,
    place: Place,
) -> Array:
    """Between the base and the mean of N models, at a share t decided by the angle between the task vectors.

        out = t mean_i(t_i) + (1 - t) base,   t = N c / (1 + (N - 1) c)

    c the mean over all pairs of the cosine of the task vectors t_i - base. Where the denominator vanishes t is 0.

    Args:
        models: whole rows of each model, [rows, entries].
        base: the same of the base.
        filter_wise: a t for each vector along the last dimension, instead of one for the tensor. (Along the last, as
            mergekit: the rows of a matrix, but the rows of each kernel of a convolution, not its filters.)
        known: the coefficients, from `model_stock_shares`; None filter-wise.
        place: says how long the last dimension is.

    Returns:
        An array of that shape and dtype. As mergekit's `model_stock`: the product of two norms counts as 1e-6 at least.
        The paper merges layer by layer, as this does tensor by tensor, and also between epochs, which is training.

    Source: Model Stock, arXiv 2403.19522, sec. 4 (two models, then N).

    >>> import numpy as np
    >>> from .gram import at_hand
    >>> base, models = np.zeros((1, 2)), [np.array([[1.0, 0.0]]), np.array([[1.0, 1.0]])]
    >>> model_stock(models, base, known=model_stock_shares(at_hand(models, base)), place=Place()).round(4)
    array([[0.8284, 0.4142]])
    """
    if known is not None:
        return combine(models, base, known)
    assert base is not None  # the plan refuses this method without a base
    return _filter_wise(list(models), base, place.shape[-1] if place.shape else 1)


def model_stock_shares(scan: Scan, *, filter_wise: bool = False) -> tuple[float, ...] | None:
    """The coefficients of the base and of the models; None filter-wise, where each vector has its own."""
    if filter_wise:
        return None
    square = gram(scan).square
    count = len(square)
    cosines = [_floored(square[i, j], square[i, i], square[j, j]) for i, j in pairs(count)]
    mean = sum(cosines) / len(cosines)
    below = 1 + (count - 1) * mean
    ratio = 0.0 if abs(below) < LEAST else count * mean / below
    return about_base([ratio / count] * count)


def _floored(product: float, square_x: float, square_y: float) -> float:
    if (square_x * square_y) ** 0.5 >= LEAST:
        return cosine(product, square_x, square_y)
    return min(1.0, max(-1.0, product / LEAST))


def _filter_wise(models: list[Array], base: Array, length: int) -> Array:
    xp: Any = array_api_compat.array_namespace(base)
    shape, count = base.shape, len(models)
    base = base.reshape(-1, length)
    vectors = list(deltas((model.reshape(-1, length) for model in models), base))

    def products(x: Array, y: Array) -> Any:  # [vectors, 1]
        return xp.sum(xp.astype(x, xp.float64) * y, axis=-1, keepdims=True)

    norms = [xp.sqrt(products(x, x)) for x in vectors]
    cosines = (
        xp.clip(products(vectors[i], vectors[j]) / xp.clip(norms[i] * norms[j], LEAST, None), -1, 1)
        for i, j in pairs(count)
    )
    mean = sum(cosines) / (count * (count - 1) / 2)
    below = 1 + (count - 1) * mean
    singular = abs(below) < LEAST
    ratio = xp.where(singular, 0.0, count * mean / xp.where(singular, 1.0, below))
    summed = vectors[0]
    for vector in vectors[1:]:
        summed += vector
    summed *= xp.astype(ratio / count, base.dtype)
    summed += base
    return summed.reshape(shape)
