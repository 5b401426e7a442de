"""Sums of task vectors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

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
    assert base is not None  # the plan refuses this method without a base
    total = None
    for w, model in zip(weight, models, strict=True):
        delta = (model - base).mul_(w)
        total = delta if total is None else total.add_(delta)
    assert total is not None  # the plan refuses a fuse of no models
    if normalize:
        total.div_(sum(weight) or 1.0)
    return total.mul_(scale).add_(base)
