"""The merge methods: pure functions on blocks, one family a file, one table.

A method takes the models' blocks as an iterable that reads each one when it is asked for, so a mean holds one block
at a time however many models there are. Blocks come in float32 (float64 for float64 inputs); the executor casts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from .linear import linear
from .task_arithmetic import task_arithmetic

if TYPE_CHECKING:
    import torch

Unit = Literal["block", "tensor", "model"]


@dataclass(frozen=True, slots=True)
class Parameter:
    """A hyperparameter: its default, whether each model has its own, and what values it takes."""

    default: float | bool
    per_model: bool = False
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Method:
    """A row of the table.

    `unit` is what the function must see at once: `block` (elementwise: any piece of a tensor), `tensor`, or `model`.
    """

    function: Callable[..., torch.Tensor]
    unit: Unit
    needs_base: bool
    parameters: Mapping[str, Parameter]


_WEIGHT = Parameter(1.0, per_model=True)

METHODS: dict[str, Method] = {
    "linear": Method(linear, "block", False, {"weight": _WEIGHT, "normalize": Parameter(True)}),
    "task_arithmetic": Method(
        task_arithmetic,
        "block",
        True,
        {"weight": _WEIGHT, "lambda": Parameter(1.0), "normalize": Parameter(False)},
    ),
}

# Parameters whose usual name is a Python keyword.
SPELLINGS: dict[str, str] = {"lambda": "scale"}


def keyword_arguments(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters by the names that the functions give them.

    >>> keyword_arguments({"lambda": 0.5})
    {'scale': 0.5}
    """
    return {SPELLINGS.get(name, name): value for name, value in parameters.items()}
