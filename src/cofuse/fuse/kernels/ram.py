"""RAM's sums and counts, one pass over a block for each model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from ..methods.method import Array
from .compiler import compiled


def ram(models: Iterable[Array], base: Array | None, *, epsilon: float = 1e-5) -> Array:
    """As `methods.ram.ram`."""
    assert base is not None
    mean, count = np.zeros_like(base), np.zeros_like(base)
    for tuned in models:
        _add(tuned, base, mean, count, base.dtype.type(epsilon))
    base += mean
    return base


def ramplus_tl(
    models: Iterable[Array],
    base: Array | None,
    *,
    known: Sequence[float],
    r: float = 0.1,
    alpha: float = 0.2,
    epsilon: float = 1e-5,
) -> Array:
    """As `methods.ram.ramplus_tl`."""
    assert base is not None
    mean, count, factor = np.zeros_like(base), np.zeros_like(base), np.ones_like(base)
    number = base.dtype.type
    for tuned, own in zip(models, known, strict=True):
        _add_marked(tuned, base, mean, count, factor, number(epsilon), number(own))
    mean *= factor
    base += mean
    return base


def count_shares(models: Iterable[Array], base: Array, epsilon: float) -> list[tuple[int, int]]:
    """As `methods.ram.count_shares`."""
    count = np.zeros(base.shape, np.int32)
    masks = []
    for tuned in models:
        masks.append(np.zeros(base.shape, np.bool_))
        _mark(tuned, base, base.dtype.type(epsilon), masks[-1], count)
    found = []
    for mask in masks:
        alone = int(_count_alone(mask, count))
        found.append((int(np.count_nonzero(mask)) - alone, alone))
    return found


@compiled
def _add(tuned, base, mean, count, epsilon):  # type: ignore[no-untyped-def]
    for i in range(base.size):
        change = tuned[i] - base[i]
        number = count[i] + base.dtype.type(1)
        more = (change - mean[i]) / number  # computed whether it is wanted or not: no branch
        if abs(change) > epsilon:
            mean[i] += more
            count[i] = number


@compiled
def _add_marked(tuned, base, mean, count, factor, epsilon, own):  # type: ignore[no-untyped-def]
    for i in range(base.size):
        change = tuned[i] - base[i]
        number = count[i] + base.dtype.type(1)
        more = (change - mean[i]) / number
        if abs(change) > epsilon:
            mean[i] += more
            factor[i] = own if number == 1 else 1
            count[i] = number


@compiled
def _mark(tuned, base, epsilon, mask, count):  # type: ignore[no-untyped-def]
    for i in range(base.size):
        changed = abs(tuned[i] - base[i]) > epsilon
        mask[i] = changed
        count[i] += changed


@compiled
def _count_alone(mask, count):  # type: ignore[no-untyped-def]
    total = 0
    for i in range(mask.size):
        total += mask[i] and count[i] == 1
    return total
