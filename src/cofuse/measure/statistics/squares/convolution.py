"""Convolutions over one or two dimensions: unfolded, they are a matrix on every patch."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

from .linear import add_outer_squares, outer
from .rule import Rule, over_positions, parts


def _patches(conv: nn.Conv2d, a: torch.Tensor) -> torch.Tensor:
    """[n, channel, height, width] -> [n, groups, places, channel of the group x kernel]."""
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    # Padded by hand: that is what `padding="same"` and the other modes come to.
    padded = F.pad(a, list(conv._reversed_padding_repeated_twice), mode=mode)
    one = a.dim() == 3  # along one dimension: as an image of height 1
    shape = [(1, *size) if one else size for size in (conv.kernel_size, conv.dilation, conv.stride)]
    columns = F.unfold(padded.unsqueeze(2) if one else padded, shape[0], dilation=shape[1], stride=shape[2])
    return columns.reshape(len(a), conv.groups, -1, columns.shape[-1]).transpose(2, 3)


def _by_group(conv: nn.Conv2d, g: torch.Tensor) -> torch.Tensor:
    """[n, out, ...] -> [n, groups, places, out of the group]."""
    return g.reshape(len(g), conv.groups, conv.out_channels // conv.groups, -1).transpose(2, 3)


def _weight(module: nn.Module, a: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    conv = cast("nn.Conv2d", module)
    found = outer(_by_group(conv, g).flatten(0, 1), _patches(conv, a).flatten(0, 1))
    return found.reshape(len(g), *conv.weight.shape)


def _add_weight(module: nn.Module, a: torch.Tensor, g: torch.Tensor, into: torch.Tensor, budget: int) -> None:
    conv = cast("nn.Conv2d", module)
    sums = into.view(conv.groups, conv.out_channels // conv.groups, -1)
    places = g[0, 0].numel()
    for part in parts(len(g), conv.groups * sums.shape[-1] * places * into.element_size(), budget):
        left, right = _by_group(conv, g[part]), _patches(conv, a[part])
        if conv.groups > 1:  # many small matrices: all at once
            sums.add_(torch.einsum("ngto,ngti->ngoi", left, right).square_().sum(0))
        else:
            add_outer_squares(left[:, 0], right[:, 0], sums[0], budget)


def _bias(module: nn.Module, a: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    return over_positions(g.movedim(1, -1))


CONVOLUTION = Rule({"weight": _weight, "bias": _bias}, {"weight": _add_weight})
