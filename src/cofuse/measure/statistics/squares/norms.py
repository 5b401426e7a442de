"""Normalisations: the scale's gradient is sum_t g * xhat, the shift's is sum_t g."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn

from .rule import Rule, over_positions


def _last(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """ConvNeXt normalises channels that stand first of the three; the formula wants them last."""
    return x.movedim(1, -1) if getattr(module, "data_format", "") == "channels_first" else x


def _layer_scale(module: nn.Module, a: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    norm = cast("nn.LayerNorm", module)
    a, g = _last(module, a), _last(module, g)
    return over_positions(g * F.layer_norm(a, norm.normalized_shape, eps=norm.eps), norm.weight.dim())


def _layer_shift(module: nn.Module, a: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    return over_positions(_last(module, g), cast("nn.LayerNorm", module).weight.dim())


def _rms_scale(module: nn.Module, a: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    """With xhat = x / sqrt(mean x^2 + eps), whether the scale is w or 1 + w."""
    rms = cast("Any", module)
    eps = next((getattr(rms, name) for name in ("variance_epsilon", "eps", "epsilon") if hasattr(rms, name)), None)
    eps = torch.finfo(a.dtype).eps if eps is None else eps
    return over_positions(g * (a * torch.rsqrt(a.square().mean(-1, keepdim=True) + eps)))


def _channels(x: torch.Tensor) -> torch.Tensor:
    """Sum over all but examples and channels of [n, channel, ...]."""
    return x.sum(tuple(range(2, x.dim()))) if x.dim() > 2 else x.clone()


def _batch_scale(module: nn.Module, a: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    """In evaluation mode the statistics are constants, so examples do not meet."""
    norm = cast("nn.BatchNorm2d", module)
    return _channels(g * F.batch_norm(a, norm.running_mean, norm.running_var, eps=norm.eps))


def _group_scale(module: nn.Module, a: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    norm = cast("nn.GroupNorm", module)
    return _channels(g * F.group_norm(a, norm.num_groups, eps=norm.eps))


def _channel_shift(module: nn.Module, a: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    return _channels(g)


LAYER_NORM = Rule({"weight": _layer_scale, "bias": _layer_shift})
RMS_NORM = Rule({"weight": _rms_scale})
BATCH_NORM = Rule({"weight": _batch_scale, "bias": _channel_shift})
GROUP_NORM = Rule({"weight": _group_scale, "bias": _channel_shift})
