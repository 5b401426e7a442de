"""Tables of vectors: a row's gradient is the sum over the places where an example has it."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from .rule import Rule


def _table(module: nn.Module, ids: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    """Of each example, dense: [n, rows, dim]."""
    rows, dim = cast("nn.Embedding", module).weight.shape
    found = g.new_zeros(len(ids), rows, dim)
    found.scatter_add_(1, _places(ids, dim), _counted(module, ids, g))
    return found


def _add_table(module: nn.Module, ids: torch.Tensor, g: torch.Tensor, into: torch.Tensor, budget: int) -> None:
    """Sum by (example, row), square, and sum by row: no example's table is ever held."""
    g = _counted(module, ids, g)
    flat = ids.reshape(len(ids), -1)
    numbers = torch.arange(len(ids), device=ids.device).unsqueeze(1)
    pairs, at = torch.unique(numbers * into.shape[0] + flat, return_inverse=True)
    sums = g.new_zeros(len(pairs), g.shape[-1])
    sums.index_add_(0, at.reshape(-1), g.reshape(-1, g.shape[-1]))
    into.index_add_(0, pairs % into.shape[0], sums.square_())


def _places(ids: torch.Tensor, dim: int) -> torch.Tensor:
    return ids.reshape(len(ids), -1, 1).expand(-1, -1, dim)


def _counted(module: nn.Module, ids: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    """The gradient [n, time, dim] as it reaches the table: scaled (Gemma, BART), and none for the padding's row."""
    g = g.reshape(len(ids), -1, g.shape[-1]) * getattr(module, "embed_scale", 1)
    padding = cast("nn.Embedding", module).padding_idx
    return g if padding is None else g * (ids.reshape(len(ids), -1, 1) != padding)


EMBEDDING = Rule({"weight": _table}, {"weight": _add_table})
