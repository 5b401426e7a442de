"""Matrices on the last dimension: `nn.Linear`, and transformers' `Conv1D`, which keeps its matrix transposed."""

from __future__ import annotations

import torch
from torch import nn

from .rule import Rule, bias

# A processor's gradient of one example is squared while it is still in the cache: so many bytes of it at a time.
CACHED = 512 * 1024


def _three(x: torch.Tensor) -> torch.Tensor:
    """[n, ..., d] -> [n, time, d]."""
    return x.reshape(len(x), -1, x.shape[-1])


def outer(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """sum_t left_nt right_nt' of [n, time, r] and [n, time, c]: [n, r, c]."""
    return torch.bmm(left.transpose(1, 2), right)


def add_outer_squares(left: torch.Tensor, right: torch.Tensor, into: torch.Tensor, budget: int) -> None:
    """Add sum_n (sum_t left_nt right_nt')^2 to [r, c].

    Without a sequence, (sum_t l r')^2 = l^2 (r^2)': one product of matrices, and nothing is held. With one, the sum over t
    comes before the square, so each example's product is made: for a stretch of rows at a time, that of a processor in
    one buffer that stays in its cache, that of a GPU for many examples at once.

    Args:
        left: [n, time, r].
        right: [n, time, c].
        into: [r, c], float32.
        budget: bytes that may be held.
    """
    (n, time, rows), columns = left.shape, right.shape[-1]
    if time == 1:
        into.addmm_(left[:, 0].square().t(), right[:, 0].square())
        return
    line = columns * into.element_size()
    if into.is_cuda:
        step = max(1, min(rows, budget // line))
        many = max(1, budget // (step * line))
        for start in range(0, rows, step):
            for first in range(0, n, many):
                found = outer(left[first : first + many, :, start : start + step], right[first : first + many])
                into[start : start + step] += found.square_().sum(0)
        return
    step = max(1, min(rows, min(CACHED, budget) // line))
    buffer = torch.empty(step, columns, dtype=into.dtype)
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        found, sums = buffer[: stop - start], into[start:stop]
        for i in range(n):
            torch.mm(left[i, :, start:stop].t(), right[i], out=found)
            sums.addcmul_(found, found)


def _linear(module: nn.Module, a: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    return outer(_three(g), _three(a))


def _add_linear(module: nn.Module, a: torch.Tensor, g: torch.Tensor, into: torch.Tensor, budget: int) -> None:
    add_outer_squares(_three(g), _three(a), into, budget)


def _transposed(module: nn.Module, a: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    return outer(_three(a), _three(g))


def _add_transposed(module: nn.Module, a: torch.Tensor, g: torch.Tensor, into: torch.Tensor, budget: int) -> None:
    add_outer_squares(_three(a), _three(g), into, budget)


# y = x W' + b, W [out, in]
LINEAR = Rule({"weight": _linear, "bias": bias}, {"weight": _add_linear})
# y = x W + b, W [in, out]
TRANSPOSED = Rule({"weight": _transposed, "bias": bias}, {"weight": _add_transposed})
