"""Weights that cannot be divided by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ...errors import FuseError

# Weights whose sum is smaller than this share of their sizes cancel; dividing by it would make noise a model.
CANCELLED = 1e-6


def refuse_cancelled(
    count: int, *, weight: Sequence[float], normalize: bool = True, normalize_weights: bool = True, **_: Any
) -> None:
    """Refuse weights that sum to zero where a method divides by their sum: a `check` of the table.

    Raises:
        FuseError: names the weights.
    """
    divides = normalize and normalize_weights
    if divides and weight and abs(math.fsum(weight)) <= CANCELLED * math.fsum(map(abs, weight)):
        raise FuseError(
            "the weights sum to zero",
            got=", ".join(f"{w:g}" for w in weight),
            hint="other weights, or no division by their sum (normalize: false) where the method allows",
        )
