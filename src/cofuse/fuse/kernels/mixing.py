"""Linear combinations and inner products of blocks as they are stored: one pass, no float32 copy of any block.

For bfloat16 and float32; and bfloat16 as float32 and back, for kernels that take floats. `combine` gives what `fuse.methods.gram.combine` gives between `as_floats` and `as_stored`, bit
for bit; the sums of `products` are in another (fixed) order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .compiler import compiled

Stored = npt.NDArray[Any]

# Entries that are worked on at a time: their buffers stay in the nearest cache.
SPAN = 1024
# Sums that are kept side by side, each of at most FLUSH products before it is added up in float64.
LANES = 1024
FLUSH = 64


def combine(rows: Stored, shares: Sequence[float], pivot: int, last: int, whole: float, out: Stored) -> bool:
    """Write `whole` t_pivot + sum_i c_i (t_i - t_pivot) into `out`; see `fuse.methods.gram.combine`.

    `rows` are the blocks as they are stored, [vectors, entries]: uint16 for bfloat16, or float32; `out` is [entries] of
    the same; `shares` are the c_i, and the rest is what `fuse.methods.gram.terms` says of them.

    Returns:
        Whether everything, the models and the result, is finite; `out` is of no use when not.
    """
    kernel = _combine_bfloat16 if rows.dtype == np.uint16 else _combine_float32
    return bool(kernel(rows, np.asarray(shares, np.float32), pivot, last, np.float32(whole), out))


def products(rows: Stored, based: bool) -> npt.NDArray[np.float64] | None:
    """The inner products of the rows, of their differences from the first one where it is a base; None if not finite.

    Returns:
        For i, for j <= i: <v_i, v_j>.
    """
    count = len(rows) - based
    found = np.zeros(count * (count + 1) // 2)
    kernel = _products_bfloat16 if rows.dtype == np.uint16 else _products_float32
    return found if kernel(rows, based, found) else None


def widen(stored: npt.NDArray[np.uint16]) -> tuple[npt.NDArray[np.float32], bool]:
    """A block of bfloat16 as float32, and whether it is finite."""
    out = np.empty(stored.shape, np.float32)
    return out, bool(_widen(stored, out) < 0x7F80)


def narrow(values: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.uint8], bool]:
    """A block of float32 rounded to bfloat16, to nearest, ties to even, as it is stored; and whether that is finite."""
    bits = np.ascontiguousarray(values).reshape(-1).view(np.uint32)
    out = np.empty(bits.shape, np.uint16)
    return out.view(np.uint8), bool(_narrow(bits, out) < 0x7F80)


@compiled
def _combine_bfloat16(rows, shares, pivot, last, whole, out):  # type: ignore[no-untyped-def]
    held, x, total = np.empty(SPAN, np.float32), np.empty(SPAN, np.float32), np.empty(SPAN, np.float32)
    top = np.uint16(0)
    for start in range(0, out.size, SPAN):
        stop = min(start + SPAN, out.size)
        top = max(top, _widen(rows[pivot, start:stop], held))
        added = False
        for i in range(len(rows)):
            if i != pivot:
                top = max(top, _widen(rows[i, start:stop], x))
                if i <= last and shares[i] != 0:
                    _add(x, held, shares[i], i > pivot, total, added)
                    added = True
        _finish(held, total, added, whole)
        top = max(top, _narrow(held.view(np.uint32), out[start:stop]))
    return top < 0x7F80


@compiled
def _combine_float32(rows, shares, pivot, last, whole, out):  # type: ignore[no-untyped-def]
    held, x, total = np.empty(SPAN, np.float32), np.empty(SPAN, np.float32), np.empty(SPAN, np.float32)
    top = np.uint32(0)
    for start in range(0, out.size, SPAN):
        stop = min(start + SPAN, out.size)
        top = max(top, _copy(rows[pivot, start:stop].view(np.uint32), held.view(np.uint32)))
        added = False
        for i in range(len(rows)):
            if i != pivot:
                top = max(top, _copy(rows[i, start:stop].view(np.uint32), x.view(np.uint32)))
                if i <= last and shares[i] != 0:
                    _add(x, held, shares[i], i > pivot, total, added)
                    added = True
        _finish(held, total, added, whole)
        top = max(top, _copy(held.view(np.uint32)[: stop - start], out[start:stop].view(np.uint32)))
    return top < 0x7F800000


@compiled
def _products_bfloat16(rows, based, found):  # type: ignore[no-untyped-def]
    count = len(rows) - based
    base = np.zeros(LANES, np.float32)
    vectors = np.zeros((count, LANES), np.float32)
    lanes = np.zeros((found.size, LANES), np.float32)
    top = np.uint16(0)
    for number, start in enumerate(range(0, rows.shape[1], LANES)):
        stop = min(start + LANES, rows.shape[1])
        if based:
            top = max(top, _widen(rows[0, start:stop], base))
        for i in range(count):
            top = max(top, _widen(rows[i + based, start:stop], vectors[i]))
        _multiply(vectors, base, based, stop - start, lanes)
        if number % FLUSH == FLUSH - 1:
            _flush(lanes, found)
    _flush(lanes, found)
    return top < 0x7F80


@compiled
def _products_float32(rows, based, found):  # type: ignore[no-untyped-def]
    count = len(rows) - based
    base = np.zeros(LANES, np.float32)
    vectors = np.zeros((count, LANES), np.float32)
    lanes = np.zeros((found.size, LANES), np.float32)
    top = np.uint32(0)
    for number, start in enumerate(range(0, rows.shape[1], LANES)):
        stop = min(start + LANES, rows.shape[1])
        if based:
            top = max(top, _copy(rows[0, start:stop].view(np.uint32), base.view(np.uint32)))
        for i in range(count):
            top = max(top, _copy(rows[i + based, start:stop].view(np.uint32), vectors[i].view(np.uint32)))
        _multiply(vectors, base, based, stop - start, lanes)
        if number % FLUSH == FLUSH - 1:
            _flush(lanes, found)
    _flush(lanes, found)
    return top < 0x7F800000


@compiled
def _widen(stored, out):  # type: ignore[no-untyped-def]
    """bfloat16 as float32, and the largest magnitude's bits: without the sign, infinity and NaN are the largest."""
    bits = out.view(np.uint32)
    top = np.uint16(0)
    for k in range(stored.size):
        bits[k] = np.uint32(stored[k]) << np.uint32(16)
        top = max(top, stored[k] & np.uint16(0x7FFF))
    return top


@compiled
def _narrow(bits, out):  # type: ignore[no-untyped-def]
    """float32 as bfloat16, to nearest, ties to even; the largest magnitude's bits. NaN is found by its exponent first."""
    top = np.uint16(0)
    for k in range(out.size):
        upper = bits[k] >> np.uint32(16)
        odd = upper & np.uint32(1)
        near = np.uint16((bits[k] + np.uint32(0x7FFF) + odd) >> np.uint32(16))
        out[k] = near
        top = max(top, np.uint16(upper & np.uint32(0x7FFF)), near & np.uint16(0x7FFF))
    return top


@compiled
def _copy(bits, out):  # type: ignore[no-untyped-def]
    top = np.uint32(0)
    for k in range(bits.size):
        out[k] = bits[k]
        top = max(top, bits[k] & np.uint32(0x7FFFFFFF))
    return top


@compiled
def _add(x, held, share, about, total, added):  # type: ignore[no-untyped-def]
    """Add c x, or c (x - held), to the total, which it starts when nothing was added yet."""
    if about and added:
        for k in range(SPAN):
            total[k] += (x[k] - held[k]) * share
    elif about:
        for k in range(SPAN):
            total[k] = (x[k] - held[k]) * share
    elif added:
        for k in range(SPAN):
            total[k] += x[k] * share
    else:
        for k in range(SPAN):
            total[k] = x[k] * share


@compiled
def _finish(held, total, added, whole):  # type: ignore[no-untyped-def]
    if whole != 1:
        for k in range(SPAN):
            held[k] *= whole
    if added:
        for k in range(SPAN):
            held[k] += total[k]


@compiled
def _multiply(vectors, base, based, count, lanes):  # type: ignore[no-untyped-def]
    pair = 0
    for i in range(len(vectors)):
        x = vectors[i]
        x[count:] = 0
        if based:
            for k in range(count):
                x[k] -= base[k]
        for j in range(i + 1):
            y, sums = vectors[j], lanes[pair]
            for k in range(LANES):
                sums[k] += x[k] * y[k]
            pair += 1


@compiled
def _flush(lanes, found):  # type: ignore[no-untyped-def]
    for pair in range(found.size):
        total = 0.0
        for k in range(LANES):
            total += lanes[pair, k]
        found[pair] += total
        lanes[pair] = 0
