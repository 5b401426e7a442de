"""Weighted means of models."""

from __future__ import annotations

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
        A tensor of that shape and dtype. Same as mergekit's `linear`.

    Source: model soups, arXiv 2203.05482, eq. 1 (uniform soup: equal weights); ColD Fusion, arXiv 2212.01378, sec. 2.

    >>> import torch
    >>> linear([torch.tensor([1.0]), torch.tensor([3.0])], None, weight=[1, 1])
    tensor([2.])
    """
    total = None
    for w, model in zip(weight, models, strict=True):
        total = model * w if total is None else total.add_(model, alpha=w)
    assert total is not None  # the plan refuses a fuse of no models
    scale = sum(weight)
    return total.div_(scale) if normalize and scale != 1.0 else total
