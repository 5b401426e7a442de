"""The steps of `fuse.methods.steps`, compiled, for float32 arrays of numpy's.

Each gives what its plain twin gives, bit for bit, but for sums in float64, which are added up in another (fixed) order.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from ..methods.method import Array
from ..methods.random import limit
from .compiler import compiled
from .draw import draw
from .ranks import drop_by_rank

__all__ = [
    "count_equal",
    "drop",
    "drop_by_rank",
    "elect",
    "gather",
    "magnitude",
    "position",
    "squares",
    "tally",
    "trim",
    "variance",
]

# Entries that are worked on at a time: their buffers stay in the nearest cache.
SPAN = 512
# Sums that are kept side by side.
LANES = 128


def tally(values: Array, prefix: int | None, shift: int, counts: npt.NDArray[np.int64]) -> None:
    """See `Steps`."""
    bits = values.view(np.uint32)
    if prefix is None:
        _tally_upper(bits, counts)
    else:
        _tally_lower(bits, np.uint32(prefix), counts)


@compiled
def _tally_upper(bits, counts):  # type: ignore[no-untyped-def]
    for i in range(bits.size):
        counts[(bits[i] & np.uint32(0x7FFFFFFF)) >> np.uint32(16)] += 1


@compiled
def _tally_lower(bits, prefix, counts):  # type: ignore[no-untyped-def]
    for i in range(bits.size):
        magnitude = bits[i] & np.uint32(0x7FFFFFFF)
        if magnitude >> np.uint32(16) == prefix:
            counts[magnitude & np.uint32(0xFFFF)] += 1


def gather(values: Array, prefix: int) -> npt.NDArray[np.uint16]:
    """See `Steps`."""
    found = np.empty(values.size, np.uint16)
    return found[: _gather(values.view(np.uint32), np.uint32(prefix), found)].copy()


@compiled
def _gather(bits, prefix, found):  # type: ignore[no-untyped-def]
    count = 0
    for i in range(bits.size):
        magnitude = bits[i] & np.uint32(0x7FFFFFFF)
        found[count] = magnitude & np.uint32(0xFFFF)  # overwritten by the next one unless it counts
        count += magnitude >> np.uint32(16) == prefix
    return count


def count_equal(values: Array, value: float) -> int:
    """See `Steps`."""
    return int(_count_equal(values, np.float32(value)))


@compiled
def _count_equal(values, value):  # type: ignore[no-untyped-def]
    found = 0
    for i in range(values.size):
        found += abs(values[i]) == value
    return found


def position(values: Array, value: float, count: int) -> int:
    """See `Steps`."""
    found = np.flatnonzero(np.abs(values) == np.float32(value))
    return int(found[count]) if count < len(found) else len(values)


def magnitude(values: Array) -> float:
    """See `Steps`."""
    return float(_magnitude(values.reshape(-1)))


@compiled
def _magnitude(values):  # type: ignore[no-untyped-def]
    # Many sums side by side, which a processor adds up at once.
    sums = np.zeros(LANES)
    whole = values.size // LANES * LANES
    for start in range(0, whole, LANES):
        part = values[start : start + LANES]
        for i in range(LANES):
            sums[i] += abs(part[i])
    for i in range(whole, values.size):
        sums[i - whole] += abs(values[i])
    return sums.sum()


def squares(values: Array) -> float:
    """See `Steps`."""
    return float(_squares(values.reshape(-1)))


@compiled
def _squares(values):  # type: ignore[no-untyped-def]
    sums = np.zeros(LANES)
    whole = values.size // LANES * LANES
    for start in range(0, whole, LANES):
        part = values[start : start + LANES]
        for i in range(LANES):
            sums[i] += np.float64(part[i]) * np.float64(part[i])
    for i in range(whole, values.size):
        sums[i - whole] += np.float64(values[i]) * np.float64(values[i])
    return sums.sum()


def trim(values: Array, outer: tuple[float, int], inner: tuple[float, int], factor: float) -> None:
    """See `Steps`."""
    # Where equal ones come before a cut, its magnitude may as well be the next smaller float: three stretches at most,
    # and in each one comparison with each cut.
    ends = sorted({0, min(outer[1], values.size), min(inner[1], values.size), values.size})
    for start, stop in pairwise(ends):
        low, high = (
            np.nextafter(np.float32(value), np.float32(-np.inf)) if start < until else np.float32(value)
            for value, until in (outer, inner)
        )
        _band(values[start:stop], low, high, np.float32(factor))


@compiled
def _band(values, low, high, factor):  # type: ignore[no-untyped-def]
    for i in range(values.size):
        value = values[i]
        size = abs(value)
        values[i] = value * factor if (size > low) & (size <= high) else np.float32(0)


def drop(values: Array, key: int, start: int, density: float, factor: float) -> None:
    """See `Steps`."""
    _drop(values, np.uint64(key), np.uint64(start), np.uint64(limit(density)), np.float32(factor))


@compiled
def _drop(values, key, start, limit, factor):  # type: ignore[no-untyped-def]
    words = np.empty(SPAN // 2 + 1, np.uint64)
    halves = words.view(np.uint32)
    for begin in range(0, values.size, SPAN):
        odd = np.int64(draw(key, start + np.uint64(begin), words))
        span = values[begin : begin + SPAN]
        for i in range(span.size):
            value = span[i] * factor
            span[i] = value if np.uint64(halves[odd + i]) < limit else np.float32(0)


def elect(
    deltas: Array,
    base: Array,
    factor: Sequence[float],
    weight: Sequence[float],
    *,
    scale: float,
    normalize: bool,
    count: bool,
    least: float,
) -> Array:
    """See `Steps`."""
    factors, weights = np.array(factor, np.float32), np.array(weight, np.float32)
    _elect(deltas, base, factors, weights, np.float32(scale), normalize, count, np.float32(least))
    return base


@compiled
def _elect(deltas, base, factor, weight, scale, normalize, count, least):  # type: ignore[no-untyped-def]
    zero, one = np.float32(0), np.float32(1)
    votes = np.empty(SPAN, np.float32)
    total = np.empty(SPAN, np.float32)
    agreed = np.empty(SPAN, np.float32)
    for begin in range(0, base.size, SPAN):
        out = base[begin : begin + SPAN]
        votes[:] = zero
        total[:] = zero
        agreed[:] = zero
        for m in range(deltas.shape[0]):
            delta = deltas[m, begin : begin + SPAN]
            if count:
                for i in range(out.size):
                    votes[i] += one if delta[i] > zero else (-one if delta[i] < zero else zero)
            else:
                for i in range(out.size):
                    votes[i] += delta[i]
        for m in range(deltas.shape[0]):
            delta = deltas[m, begin : begin + SPAN]
            f, w = factor[m], weight[m]
            for i in range(out.size):
                # A zero agrees with nobody.
                agrees = (delta[i] > zero) if votes[i] >= zero else (delta[i] < zero)
                total[i] += delta[i] * f if agrees else zero
                agreed[i] += w if agrees else zero
        for i in range(out.size):
            mixed = total[i]
            if normalize:
                divisor = max(agreed[i], least) if least > zero else agreed[i]
                mixed /= one if divisor == zero else divisor
            out[i] += mixed * scale


def variance(deltas: Array) -> Array:
    """See `Steps`."""
    found = np.empty(deltas.shape[1], np.float32)
    _variance(deltas, found)
    return found


@compiled
def _variance(deltas, found):  # type: ignore[no-untyped-def]
    models = deltas.shape[0]
    mean, squared = np.empty(SPAN), np.empty(SPAN)
    for begin in range(0, found.size, SPAN):
        out = found[begin : begin + SPAN]
        mean[:] = 0
        squared[:] = 0
        for m in range(models):
            delta = deltas[m, begin : begin + SPAN]
            for i in range(out.size):
                mean[i] += np.float64(delta[i])
        for i in range(out.size):
            mean[i] /= models
        for m in range(models):
            delta = deltas[m, begin : begin + SPAN]
            for i in range(out.size):
                apart = np.float64(delta[i]) - mean[i]
                squared[i] += apart * apart
        for i in range(out.size):
            out[i] = np.float32(squared[i] / models)
