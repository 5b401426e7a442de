"""Sums of task vectors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from .gram import about_base, combine
from .method import Array


def task_arithmetic(
    models: Iterable[Array],
    base: Array | None,
    *,
    weight: Sequence[float],
    scale: float = 1.0,
    normalize: bool = False,
) -> Array:
    """The base plus the weighted sum of the task vectors.

        out = base + lambda sum_i w_i (t_i - base)        (divided by sum_i w_i when normalised)

    Args:
        models: one block of each model, all of one shape and floating dtype; taken one at a time.
        base: the same block of the base.
        weight: w_i, one for each model; no unit. Negative ones forget a task.
        scale: lambda.
        normalize: divide the sum by the sum of the weights, as mergekit does on request.

    Returns:
        An array of that shape and dtype.

    Source: Editing models with task arithmetic, arXiv 2212.04089, sec. 2. mergekit rounds each task vector to the
    working dtype first; blocks come here in float32, so small bf16 vectors keep their low bits.

    >>> import numpy as np
    >>> task_arithmetic([np.array([3.0])], np.array([1.0]), weight=[0.5])
    array([2.])
    """
    assert base is not None  # the plan refuses this method without a base
    shares = task_arithmetic_shares(len(weight), weight=weight, scale=scale, normalize=normalize)
    return combine(models, base, shares)


def task_arithmetic_shares(
    count: int, *, weight: Sequence[float], scale: float = 1.0, normalize: bool = False
) -> tuple[float, ...]:
    """The coefficients of the base and of the models.

    >>> task_arithmetic_shares(2, weight=[0.5, 0.25])
    (0.25, 0.5, 0.25)
    """
    share = scale / math.fsum(weight) if normalize else scale
    return about_base(share * w for w in weight)
