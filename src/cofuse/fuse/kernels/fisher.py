"""Fisher-weighted means, one pass over a block for each model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from ..methods.fisher import Floored, Norm, floors
from ..methods.method import Array
from .compiler import compiled


def fisher(
    models: Iterable[Array],
    base: Array | None,
    *,
    fisher: Iterable[Array],
    known: Sequence[float],
    weight: Sequence[float],
    normalize_by: Norm = "mean",
    floor: float = 1e-6,
    floor_on: Floored = "all",
) -> Array:
    """As `methods.fisher.fisher`."""
    mean = total = np.empty(0)
    out: Array | None = None
    limits = floors(floor, floor_on, len(weight))
    for block, own, w, size, (first, least) in zip(models, fisher, weight, known, limits, strict=True):
        if w:
            if out is None:
                out = np.empty_like(block)
                mean, total = np.zeros(block.size), np.zeros(block.size)
            _add(block.reshape(-1), own.reshape(-1), mean, total, float(w), float(size), first, least)
    assert out is not None  # the plan has refused weights that are all zero
    out.reshape(-1)[:] = mean
    return out


@compiled
def _add(block, fisher, mean, total, weight, scale, first, least):  # type: ignore[no-untyped-def]
    for j in range(block.size):
        share = weight * max(max(np.float64(fisher[j]), first) / scale, least)
        more = total[j] + share
        total[j] = more
        mean[j] += share / more * (np.float64(block[j]) - mean[j])
