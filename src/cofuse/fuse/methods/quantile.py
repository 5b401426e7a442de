"""Order statistics of values that are spread over blocks: exact, in two passes, without sorting."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from array_api_compat import array_namespace, is_numpy_array, to_device

from .method import Array, Place, Scan

# What one block has of each series of values.
Values: TypeAlias = Callable[[Iterable[Array], Array | None, Place], Sequence[Array]]
Ranks: TypeAlias = Callable[[int], Sequence[int]]
Counts: TypeAlias = npt.NDArray[np.int64]

HALF = 1 << 16  # values of 16 bits


def order_statistics(scan: Scan, values: Values, series: int, ranks: Ranks) -> list[list[float]]:
    """The values that stand at given places when all are sorted, ascending; for several series at once.

    The order of float32 numbers is that of their bits (those of negative ones turned around). A histogram of the upper
    16 bits says which bin each rank falls in; one of the lower 16 bits within that bin says which value it is. Counts
    are integers: it does not matter which thread counts first.

    Args:
        scan: goes over the blocks; used twice.
        values: of one block, an array of each series, the same at both passes; compared as float32.
        series: how many.
        ranks: of a series of n values, the places asked for, 0 the smallest.

    Returns:
        For each series, the values at those places; none for a series without values.
    """
    tallies = Tallies(series, HALF)

    def upper(models: Iterable[Array], base: Array | None, place: Place) -> None:
        for counts, x in zip(tallies.mine(), values(models, base, place), strict=True):
            _tally_upper(x, counts)

    scan(upper)
    firsts = [_Firsts(counts, ranks) for counts in tallies.total()]
    if not any(first.bins for first in firsts):
        return [[] for _ in firsts]
    slots = [first.slots() for first in firsts]
    tallies = Tallies(series, max(len(first.bins) for first in firsts), HALF)

    def lower(models: Iterable[Array], base: Array | None, place: Place) -> None:
        for counts, slot, x in zip(tallies.mine(), slots, values(models, base, place), strict=True):
            _tally_lower(x, slot, counts)

    scan(lower)
    return [first.values(counts) for first, counts in zip(firsts, tallies.total(), strict=True)]


class _Firsts:
    """Where the ranks of one series fall: the upper bits of each, and how many values of that bin stand before it."""

    def __init__(self, counts: Counts, ranks: Ranks) -> None:
        ends = np.cumsum(counts)
        n = int(ends[-1])
        self.asked: list[tuple[int, int]] = []
        for rank in ranks(n) if n else ():
            bin_ = int(np.searchsorted(ends, rank, side="right"))
            self.asked.append((bin_, rank - int(ends[bin_] - counts[bin_])))
        self.bins = sorted({bin_ for bin_, _ in self.asked})

    def slots(self) -> npt.NDArray[np.int8]:
        slot = np.full(HALF, -1, np.int8)
        slot[self.bins] = np.arange(len(self.bins))
        return slot

    def values(self, counts: Counts) -> list[float]:
        ends = np.cumsum(counts, axis=1)
        found = []
        for bin_, left in self.asked:
            low = int(np.searchsorted(ends[self.bins.index(bin_)], left, side="right"))
            key = np.int32((bin_ - HALF // 2) * HALF + low)
            found.append(float((key ^ ((key >> 31) & np.int32(0x7FFFFFFF))).view(np.float32)))
        return found


class Tallies:
    """Counts that many threads add to: each has its own, summed at the end."""

    def __init__(self, *shape: int) -> None:
        self._shape = shape
        self._own = threading.local()
        self._all: list[Counts] = []

    def mine(self) -> Counts:
        if not hasattr(self._own, "counts"):
            self._own.counts = np.zeros(self._shape, np.int64)
            self._all.append(self._own.counts)
        found: Counts = self._own.counts
        return found

    def total(self) -> Counts:
        total = np.zeros(self._shape, np.int64)
        for counts in self._all:
            total += counts
        return total


def _tally_upper(x: Array, counts: Counts) -> None:
    bits = _bits(x)
    if is_numpy_array(bits):
        from ..kernels.digits import tally_upper

        tally_upper(bits.view(np.uint32), counts)
    else:
        plain_upper(bits, counts)


def _tally_lower(x: Array, slot: npt.NDArray[np.int8], counts: Counts) -> None:
    bits = _bits(x)
    if is_numpy_array(bits):
        from ..kernels.digits import tally_lower

        tally_lower(bits.view(np.uint32), slot, counts)
    else:
        plain_lower(bits, slot, counts)


def plain_upper(bits: npt.NDArray[np.int32], counts: Counts) -> None:
    """Count each value's upper 16 bits."""
    xp = array_namespace(bits)
    counts += _on_cpu(xp.bincount((_keys(bits) >> 16) + HALF // 2, minlength=HALF))


def plain_lower(bits: npt.NDArray[np.int32], slot: npt.NDArray[np.int8], counts: Counts) -> None:
    """Count the lower 16 bits of the values whose upper ones have a slot: counts[slot, lower]."""
    xp = array_namespace(bits)
    keys = _keys(bits)
    for s in range(int(slot.max()) + 1):
        inside = keys[(keys >> 16) + HALF // 2 == int((slot == s).argmax())]
        counts[s] += _on_cpu(xp.bincount(inside & (HALF - 1), minlength=HALF))


def _bits(x: Array) -> npt.NDArray[np.int32]:
    xp = array_namespace(x)
    flat = xp.reshape(xp.astype(x, xp.float32, copy=False), (-1,))
    bits: npt.NDArray[np.int32] = flat.view(xp.int32)
    return bits


def _keys(bits: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def _on_cpu(counts: npt.NDArray[np.int64]) -> Counts:
    found: Counts = np.asarray(to_device(counts, "cpu"))
    return found
