"""Parameters outside of layers that have one row for all examples: a class token, a picture's positions, both [1, ...].

For the length of a forward pass each example is given a row of its own. Whatever broadcasts or expands the one row takes
as many rows as there are examples just as well, and their gradients come back apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

Arrived = Callable[[str, torch.Tensor], None]


def bare_rows(module: nn.Module, names: Mapping[int, str]) -> list[tuple[nn.Module, str, str]]:
    """Where they are: the module that holds one, its name there, and its name among `names`, which go by the object's id."""
    return [
        (inner, attribute, names[id(parameter)])
        for inner in module.modules()
        for attribute, parameter in inner.named_parameters(recurse=False)
        if id(parameter) in names and parameter.dim() > 1 and parameter.shape[0] == 1
    ]


@contextmanager
def own_rows(bare: list[tuple[nn.Module, str, str]], count: int, arrived: Arrived) -> Iterator[None]:
    """Inside, each of them has `count` rows; going backward, `arrived` is told of their gradients [count, ...]."""
    before = [(module, dict(module._parameters)) for module, _, _ in bare]
    try:
        for module, attribute, name in bare:
            parameter = module._parameters.pop(attribute)
            if parameter is None:
                continue
            rows = parameter.detach().expand(count, *parameter.shape[1:]).clone().requires_grad_()

            def tell(g: torch.Tensor, name: str = name) -> torch.Tensor:
                arrived(name, g)
                return g

            rows.register_hook(tell)  # type: ignore[no-untyped-call]
            setattr(module, attribute, rows)
        yield
    finally:
        for (module, parameters), (_, attribute, _) in zip(reversed(before), reversed(bare), strict=True):
            module.__dict__.pop(attribute, None)
            module._parameters.clear()  # whole, so that they stand in their order
            module._parameters.update(parameters)
