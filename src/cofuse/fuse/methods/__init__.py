"""The merge methods: pure functions on blocks, one family a file, one table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .linear import linear
from .method import Array, Look, Method, Parameter, Place, Scan, Scope, Unit
from .task_arithmetic import task_arithmetic

WEIGHT = Parameter(1.0, per_model=True)

METHODS: dict[str, Method] = {
    "linear": Method(linear, "block", False, {"weight": WEIGHT, "normalize": Parameter(True)}),
    "task_arithmetic": Method(
        task_arithmetic, "block", True, {"weight": WEIGHT, "lambda": Parameter(1.0), "normalize": Parameter(False)}
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


__all__ = [
    "METHODS",
    "Array",
    "Look",
    "Method",
    "Parameter",
    "Place",
    "Scan",
    "Scope",
    "Unit",
    "keyword_arguments",
]
