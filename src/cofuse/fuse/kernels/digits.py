"""Histograms of the bits of float32 values, from which order statistics are read."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .compiler import compiled

SIGN = np.uint32(0x80000000)
ALL = np.uint32(0xFFFFFFFF)
SHIFT = np.uint32(16)


@compiled
def tally_upper(bits: npt.NDArray[np.uint32], counts: npt.NDArray[np.int64]) -> None:
    """Count each value's upper 16 bits, in the order of the values; `bits` are float32 values seen as uint32."""
    for i in range(bits.size):
        b = bits[i]
        counts[(b ^ (ALL if b & SIGN else SIGN)) >> SHIFT] += 1


@compiled
def tally_lower(bits: npt.NDArray[np.uint32], slot: npt.NDArray[np.int8], counts: npt.NDArray[np.int64]) -> None:
    """Count the lower 16 bits of the values whose upper ones have a slot: counts[slot, lower]."""
    for i in range(bits.size):
        b = bits[i]
        key = b ^ (ALL if b & SIGN else SIGN)
        s = slot[key >> SHIFT]
        if s >= 0:
            counts[np.uint8(s), key & np.uint32(0xFFFF)] += 1
