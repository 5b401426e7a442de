"""Weighted means of models."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from .method import Array


def linear(models: Iterable[Array], base: Array | None, *, weight: Sequence[float], normalize: bool = True) -> Array:
    """The weighted mean of the models.

        out = sum_i w_i t_i / sum_i w_i

    Args:
        models: one block of each model, all of one shape and floating dtype; taken one at a time.
        base: not used.
        weight: w_i, one for each model; no unit.
        normalize: divide by the sum of the weights; without it the weighted sum is returned.

    Returns:
        An array of that shape and dtype. As mergekit's `linear`, but summed as differences from one of the models:
        finetuned models differ little, so that the rounding of a long sum stays small, and models that agree give
        what they agree on.

    Source: model soups, arXiv 2203.05482, eq. 1 (uniform soup: equal weights); ColD Fusion, arXiv 2212.01378, sec. 2.

    >>> import numpy as np
    >>> linear([np.array([1.0]), np.array([3.0])], None, weight=[1, 1])
    array([2.])
    """
    # out = W t_k + sum_i w_i (t_i - t_k), over W where normalised; t_k is the first model that has a weight, so that a
    # one-hot weight gives that model bit for bit.
    scale = math.fsum(weight)
    pivot, total = about_pivot(models, weight)
    if normalize:
        if total is not None:
            total /= scale
            pivot += total
        return pivot
    pivot *= scale
    if total is not None:
        pivot += total
    return pivot


def about_pivot(models: Iterable[Array], weight: Sequence[float]) -> tuple[Array, Array | None]:
    """The first model t_k that has a weight, and sum_i w_i (t_i - t_k) over the others (None where there are none)."""
    k = next((i for i, w in enumerate(weight) if w), 0)
    pivot: Array | None = None
    total: Array | None = None
    blocks = iter(models)
    for i, w in enumerate(weight):
        model = next(blocks)
        if i == k:
            pivot = model
        elif pivot is not None and w:
            model -= pivot
            model *= w
            if total is None:
                total = model
            else:
                total += model
        del model  # before the next one is read
    assert pivot is not None  # the plan refuses a fuse of no models
    return pivot, total
