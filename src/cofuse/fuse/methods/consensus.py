"""Consensus Merging: task vectors where several tasks use them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import array_api_compat

from .gram import deltas
from .method import Array


def consensus(
    models: Iterable[Array],
    base: Array | None,
    *,
    weight: Sequence[float],
    threshold: Sequence[float],
    least: int = 2,
    scale: float = 1.0,
) -> Array:
    """The sum of the task vectors, at the entries that at least so many tasks use.

        d_i = t_i - base,  d = sum_i w_i d_i
        m_i = abs(d_i) > threshold_i abs(d - d_i)            the TALL mask of task i: it is nearer with d than without
        out = base + lambda d where sum_i m_i >= least, else base

    Args:
        models: one block of each model, all of one shape and floating dtype.
        base: the same block of the base.
        weight: w_i, one for each model; no unit. A model of weight 0 has no mask.
        threshold: lambda_t in the paper, one for each model; larger ones make sparser masks. The paper tunes it in 0.2 to 0.6.
        least: k in the paper; 2 drops what no task or a single one uses ("catastrophic" and "selfish" weights), 1 the former
            alone, 0 gives task arithmetic.
        scale: lambda, alpha in the paper: how far to go along d.

    Returns:
        An array of that shape and dtype. The masks compare strictly, as the authors' program does, so that what no model
        has changed is used by none; the paper writes >=. The authors' d is unweighted (all w_i = 1), or that of TIES.

    Source: Localizing Task Information for Improved Model Merging and Compression, arXiv 2405.07813, sec. 4.1 (eq. 5) and 4.3.

    >>> import numpy as np
    >>> base, a, b = np.zeros(3), np.array([1.0, 1.0, 0.0]), np.array([1.0, -4.0, 0.1])
    >>> consensus([a, b], base, weight=[1, 1], threshold=[0.4, 0.4])
    array([2., 0., 0.])
    """
    assert base is not None  # the plan refuses this method without a base
    xp = array_api_compat.array_namespace(base)
    own = list(deltas(models, base))
    total = sum(w * d for w, d in zip(weight, own, strict=True))
    uses = xp.zeros(base.shape, dtype=xp.int32, device=array_api_compat.device(base))
    for w, d, t in zip(weight, own, threshold, strict=True):
        if w:
            rest = total - d
            rest *= t
            uses += abs(d) > abs(rest)
    total *= uses >= least
    total *= scale
    base += total
    return base
