"""Masks whose probability grows with an entry's rank in its row."""

from __future__ import annotations

import numpy as np

from ..methods.method import Array
from ..methods.random import RANGE
from .compiler import compiled
from .draw import draw

# Bins of a row's magnitudes, and how many comparisons for each of its entries are made before the row is sorted instead.
ROW_BINS = 1024
COMPARED = 64


def drop_by_rank(
    values: Array, key: int, start: int, density: float, epsilon: float, factor: float, inverse: bool
) -> None:
    """See `Steps`."""
    _drop_by_rank(values, np.uint64(key), np.uint64(start), density, epsilon, factor, inverse)


@compiled
def _limit(rank, n, density, epsilon):  # type: ignore[no-untyped-def]
    """Below what a draw keeps the entry of this rank."""
    if n == 1:
        return density * RANGE
    return ((density - epsilon) + 2 * epsilon * (rank / (n - 1))) * RANGE


@compiled
def _drop_by_rank(values, key, start, density, epsilon, factor, inverse):  # type: ignore[no-untyped-def]
    # Most entries need no exact rank: a coarse histogram of the row's magnitudes says between which ranks an entry lies,
    # and its draw falls on one side of what either allows. Only the others are compared with the rest of their bin.
    rows, n = values.shape
    bits = values.view(np.uint32)
    words = np.empty(n // 2 + 1, np.uint64)
    halves = words.view(np.uint32)
    sizes = np.empty(n, np.uint32)
    bins = min(ROW_BINS, n // 2 + 1)
    bin_of = np.empty(n, np.uint16)
    below = np.empty(bins + 2, np.int64)
    surely, perhaps = np.empty(bins + 1), np.empty(bins + 1)
    kept = np.empty(n, np.bool_)
    unsure, members = np.empty(n, np.int64), np.empty(n, np.int64)
    for row in range(rows):
        odd = np.int64(draw(key, start + np.uint64(row) * np.uint64(n), words))
        least, most = np.uint32(0x7FFFFFFF), np.uint32(0)
        for i in range(n):
            size = bits[row, i] & np.uint32(0x7FFFFFFF)
            sizes[i] = size
            most = max(most, size)
            least = min(least, size if size else np.uint32(0x7FFFFFFF))
        if not most:
            continue  # whether a zero is kept makes no difference
        if inverse:
            _weigh_by_rank(values[row], _order(sizes), halves[odd:], density, epsilon, factor)
            continue
        shift = np.uint32(0)
        while (most - least) >> shift >= bins:
            shift += np.uint32(1)
        # Zeros have the first bin to themselves: untouched weights are many, and the next larger ones far away.
        for i in range(n):
            bin_of[i] = ((sizes[i] - least) >> shift) + np.uint32(1) if sizes[i] else np.uint32(0)
        below[:] = 0
        for i in range(n):
            below[bin_of[i] + 1] += 1
        for b in range(bins + 1):
            below[b + 1] += below[b]
        for b in range(bins + 1):
            surely[b] = _limit(below[b], n, density, epsilon)
            perhaps[b] = _limit(below[b + 1] - 1, n, density, epsilon)
        count = 0
        for i in range(n):
            b = bin_of[i]
            drawn = np.float64(halves[odd + i])
            kept[i] = drawn < surely[b]
            unsure[count] = i
            count += (drawn >= surely[b]) & (drawn < perhaps[b]) & (b > 0)
        work = 0
        for u in range(count):
            b = bin_of[unsure[u]]
            work += below[b + 1] - below[b]
        if work > COMPARED * n:
            order = _order(sizes)
            for rank in range(n):
                i = order[rank]
                kept[i] = np.float64(halves[odd + i]) < _limit(rank, n, density, epsilon)
        elif count:
            _into_bins(bin_of, below, members)
            for u in range(count):
                i = unsure[u]
                b = bin_of[i]
                rank = below[b]
                for m in range(below[b], below[b + 1]):
                    j = members[m]
                    rank += (sizes[j] < sizes[i]) | ((sizes[j] == sizes[i]) & (j < i))
                kept[i] = np.float64(halves[odd + i]) < _limit(rank, n, density, epsilon)
        for i in range(n):
            value = values[row, i] * np.float32(factor)
            values[row, i] = value if kept[i] else np.float32(0)


@compiled
def _weigh_by_rank(values, order, drawn, density, epsilon, factor):  # type: ignore[no-untyped-def]
    for rank in range(values.size):
        i = order[rank]
        limit = _limit(rank, values.size, density, epsilon)
        weight = np.float32(factor / (limit / RANGE))
        values[i] = values[i] * weight if np.float64(drawn[i]) < limit else np.float32(0)


@compiled
def _into_bins(bin_of, below, members):  # type: ignore[no-untyped-def]
    """The entries of each bin, in their order."""
    places = below.copy()
    for i in range(bin_of.size):
        b = bin_of[i]
        members[places[b]] = i
        places[b] += 1


@compiled
def _order(sizes):  # type: ignore[no-untyped-def]
    """The stable order of numbers of 31 bits: by their digits of 8 bits, the last first."""
    n = sizes.size
    words, other = np.empty(n, np.uint64), np.empty(n, np.uint64)
    starts = np.zeros((4, 257), np.int64)
    for i in range(n):
        words[i] = (np.uint64(sizes[i]) << np.uint64(32)) | np.uint64(i)
        for digit in range(4):
            starts[digit, np.int64((sizes[i] >> np.uint32(8 * digit)) & np.uint32(0xFF)) + 1] += 1
    for digit in range(4):
        own = starts[digit]
        if own.max() == n:
            continue  # all alike
        for d in range(256):
            own[d + 1] += own[d]
        shift = np.uint64(32 + 8 * digit)
        for i in range(n):
            at = np.int64((words[i] >> shift) & np.uint64(0xFF))
            other[own[at]] = words[i]
            own[at] += 1
        words, other = other, words
    order = np.empty(n, np.int64)
    for i in range(n):
        order[i] = np.int64(words[i] & np.uint64(0xFFFFFFFF))
    return order
