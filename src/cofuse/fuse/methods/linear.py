"""Weighted means of models."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from .gram import combine
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
    return combine(models, None, linear_shares(len(weight), weight=weight, normalize=normalize))


def linear_shares(count: int, *, weight: Sequence[float], normalize: bool = True) -> tuple[float, ...]:
    """The models' coefficients.

    >>> linear_shares(2, weight=[1, 3])
    (0.25, 0.75)
    """
    scale = math.fsum(weight) if normalize else 1.0
    return tuple(w / scale for w in weight)
