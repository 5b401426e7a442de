"""Weighted means of models."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def linear(
    models: Iterable[torch.Tensor], base: torch.Tensor | None, *, weight: Sequence[float], normalize: bool = True
) -> torch.Tensor:
    """The weighted mean of the models.

        out = sum_i w_i t_i / sum_i w_i

    Args:
        models: one block of each model, all of one shape and floating dtype; taken one at a time.
        base: not used.
        weight: w_i, one for each model; no unit.
        normalize: divide by the sum of the weights; without it the weighted sum is returned.

    Returns:
        A tensor of that shape and dtype. As mergekit's `linear`, but summed as differences from one of the models:
        finetuned models differ little, so that the rounding of a long sum stays small, and models that agree give
        what they agree on.

    Source: model soups, arXiv 2203.05482, eq. 1 (uniform soup: equal weights); ColD Fusion, arXiv 2212.01378, sec. 2.

    >>> import torch
    >>> linear([torch.tensor([1.0]), torch.tensor([3.0])], None, weight=[1, 1])
    tensor([2.])
    """
    # out = W t_k + sum_i w_i (t_i - t_k), over W where normalised; t_k is the first model that has a weight, so that a
    # one-hot weight gives that model bit for bit.
    scale = math.fsum(weight)
    pivot, total = about_pivot(models, weight)
    if normalize:
        return pivot.clone() if total is None else total.div_(scale).add_(pivot)
    return pivot * scale if total is None else total.add_(pivot, alpha=scale)


def about_pivot(models: Iterable[torch.Tensor], weight: Sequence[float]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The first model t_k that has a weight, and sum_i w_i (t_i - t_k) over the others (None where there are none)."""
    import torch

    k = next((i for i, w in enumerate(weight) if w), 0)
    pivot = total = difference = None
    blocks = iter(models)
    for i, w in enumerate(weight):
        model = next(blocks)
        if i == k:
            pivot = model
        elif pivot is not None and w:
            difference = torch.sub(model, pivot, out=difference)  # one buffer for all of them
            total = difference * w if total is None else total.add_(difference, alpha=w)
        del model  # before the next one is read
    assert pivot is not None  # the plan refuses a fuse of no models
    return pivot, total
