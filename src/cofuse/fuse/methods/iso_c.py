"""Isotropic merging: a sum of task vectors, every direction of which counts alike."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from .method import Array
from .spectral import as_tall, inverse_root, is_matrix, one_thread, right_vectors, sum_of_changes, times


def iso_c(models: Iterable[Array], base: Array | None, *, weight: Sequence[float], scale: float = 1.0) -> Array:
    """The base plus the sum of the task vectors with all its singular values replaced by their mean.

        sum_i w_i (t_i - base) = U diag(sigma) V^T,    out = base + lambda mean(sigma) U V^T        (matrices)
        out = base + lambda mean_i w_i (t_i - base)                                                  (vectors)

    Args:
        models: each model's whole tensor, in its shape; a convolution's kernel counts as [out, rest].
        base: the base's.
        weight: w_i, one for each model; no unit. Models of weight 0 are not counted in the mean.
        scale: lambda, which the paper tunes on validation data.

    Returns:
        An array of that shape and dtype.

    Source: No task left behind: isotropic model merging, arXiv 2502.04959 (Iso-C); the mean is over all
    min(out, rest) singular values. The authors' code treats only tensors of two dimensions as matrices. Directions that
    the sum does not have (LoRA leaves most of them out) are left alone: a singular value decomposition would put
    arbitrary ones in their place, of the same size as the others.

    >>> import numpy as np
    >>> base, tuned = np.zeros((2, 2)), np.array([[3.0, 0.0], [0.0, 1.0]])
    >>> iso_c([tuned], base, weight=[1])
    array([[2., 0.],
           [0., 2.]])
    """
    assert base is not None  # the plan refuses this method without a base
    if not is_matrix(base.shape):
        total = sum_of_changes(models, base, weight)
        if total is not None:
            base += total * (scale / sum(w != 0 for w in weight))
        return base
    with one_thread(base):
        total = sum_of_changes(models, base, weight)
        if total is not None:
            tall = as_tall(total)
            sigma, v = right_vectors(tall)
            times(tall, inverse_root(sigma, v) * (scale * math.fsum(sigma.tolist()) / len(sigma)))
            base += total
    return base
