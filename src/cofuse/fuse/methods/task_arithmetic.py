"""Sums of task vectors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from .linear import about_pivot

if TYPE_CHECKING:
    import torch


def task_arithmetic(
    models: Iterable[torch.Tensor],
    base: torch.Tensor | None,
    *,
    weight: Sequence[float],
    scale: float = 1.0,
    normalize: bool = False,
) -> torch.Tensor:
    """The base plus the weighted sum of the task vectors.

        out = base + lambda sum_i w_i (t_i - base)        (divided by sum_i w_i when normalised)

    Args:
        models: one block of each model, all of one shape and floating dtype; taken one at a time.
        base: the same block of the base.
        weight: w_i, one for each model; no unit. Negative ones forget a task.
        scale: lambda.
        normalize: divide the sum by the sum of the weights, as mergekit does on request.

    Returns:
        A tensor of that shape and dtype.

    Source: Editing models with task arithmetic, arXiv 2212.04089, sec. 2. mergekit rounds each task vector to the
    working dtype first; blocks come here in float32, so small bf16 vectors keep their low bits.

    >>> import torch
    >>> task_arithmetic([torch.tensor([3.0])], torch.tensor([1.0]), weight=[0.5])
    tensor([2.])
    """
    import torch

    assert base is not None  # the plan refuses this method without a base
    # As in `linear`, sum_i w_i (t_i - base) = W (t_k - base) + sum_i w_i (t_i - t_k), t_k the first model with a weight.
    # lerp(base, t_k, 1) is t_k itself, where base + (t_k - base) is rounded.
    whole = math.fsum(weight)
    pivot, total = about_pivot(models, weight)
    result = torch.lerp(base, pivot, scale if normalize else scale * whole)
    return result if total is None else result.add_(total, alpha=scale / whole if normalize else scale)
