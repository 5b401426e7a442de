"""What a rule is: from a layer's inputs and the gradient at its outputs to each example's gradient of a parameter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import nn

# The layer, its inputs [n, ...], the gradient at its outputs [n, ...] -> gradients [n, *shape of the parameter].
Gradients: TypeAlias = Callable[[nn.Module, torch.Tensor, torch.Tensor], torch.Tensor]
# The same, and the sum of squares so far, to which it adds; how many bytes it may take.
Adding: TypeAlias = Callable[[nn.Module, torch.Tensor, torch.Tensor, torch.Tensor, int], None]


@dataclass(frozen=True, slots=True)
class Rule:
    """A row of the table.

    Attributes:
        gradients: a layer's parameters by their names in it -> each example's gradient, which is what is squared.
        faster: the sum of their squares without holding them, where there is a way.
    """

    gradients: Mapping[str, Gradients]
    faster: Mapping[str, Adding] = field(default_factory=dict)

    def add(
        self, name: str, module: nn.Module, a: torch.Tensor, g: torch.Tensor, into: torch.Tensor, budget: int
    ) -> None:
        """Add the sum over examples of squared gradients of a parameter."""
        faster = self.faster.get(name)
        if faster is not None:
            faster(module, a, g, into, budget)
            return
        for part in parts(len(g), into.numel() * into.element_size(), budget):
            into.add_(self.gradients[name](module, a[part], g[part]).square_().sum(0))


def parts(count: int, each: int, budget: int) -> list[slice]:
    """Examples in runs whose gradients fit a budget of bytes.

    >>> parts(5, 10, 25)
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    step = max(1, budget // max(1, each))
    return [slice(start, min(start + step, count)) for start in range(0, count, step)]


def over_positions(g: torch.Tensor, kept: int = 1) -> torch.Tensor:
    """Sum over all dimensions but the first and the last `kept`."""
    return g.sum(tuple(range(1, g.dim() - kept))) if g.dim() > kept + 1 else g.clone()


def bias(module: nn.Module, a: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    """Of a bias that is added to the last dimension: sum_t g_nt."""
    return over_positions(g)
