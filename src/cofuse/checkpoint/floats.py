"""Floats of every kind as float32 (or float64) arrays and back, without torch.

Numpy has no bfloat16 and no 8-bit floats. A bfloat16 is the upper half of a float32; an 8-bit float is one of 256 values.
"""

from __future__ import annotations

from functools import cache
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[np.floating[Any]]

# Kinds that blocks are computed from, and what numpy reads them as.
STORED: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": np.uint16,
    "F8_E4M3": np.uint8,
    "F8_E5M2": np.uint8,
}
FLOATS = frozenset(STORED)
# (exponent bits, mantissa bits, bias, whether the largest exponent means infinity and NaN as in IEEE)
_EIGHT = {"F8_E4M3": (4, 3, 7, False), "F8_E5M2": (5, 2, 15, True)}


def as_floats(raw: npt.NDArray[np.uint8], code: str, working: type[np.float32] | type[np.float64]) -> Array:
    """Stored bytes as an array of the working dtype; the bytes themselves where they are of it already.

    >>> as_floats(np.array([0x80, 0x3F], np.uint8), "BF16", np.float32)
    array([1.], dtype=float32)
    """
    stored = raw.view(STORED[code])
    if code == "BF16":
        wide = stored.astype(np.uint32)
        wide <<= 16
        found: Array = wide.view(np.float32)
        return found if working is np.float32 else found.astype(working)
    if code in _EIGHT:
        table: Array = eight_bit_values(code).astype(working)
        eight: Array = table[stored]
        return eight
    cast: Array = stored.astype(working, copy=False)
    return cast


def as_stored(values: Array, code: str) -> npt.NDArray[np.uint8]:
    """An array as stored bytes, rounded to nearest, ties to even. Values are finite.

    >>> as_stored(np.array([1.0], np.float32), "BF16").tolist()
    [128, 63]
    """
    if code == "BF16":
        if values.dtype != np.float32:
            # Rounded once, not to float32 and then again: to odd first, which keeps on which side of a tie a value lies.
            values = _to_odd(values)
        bits = np.ascontiguousarray(values).view(np.uint32)
        rounded = bits >> np.uint32(16)
        rounded &= np.uint32(1)
        rounded += np.uint32(0x7FFF)
        rounded += bits
        rounded >>= np.uint32(16)
        return rounded.astype(np.uint16).view(np.uint8).reshape(-1)
    if code in _EIGHT:
        return _nearest_eight(values, code)
    with np.errstate(over="ignore"):  # what grows infinite is found and named by the executor
        kept = values.astype(STORED[code], copy=False)
    return np.ascontiguousarray(kept).view(np.uint8).reshape(-1)


@cache
def eight_bit_values(code: str) -> Array:
    """The 256 values of an 8-bit float, by their bits; float32.

    Source: OCP 8-bit Floating Point Specification, rev. 1.0, sec. 5.

    >>> float(eight_bit_values("F8_E4M3").max(where=np.isfinite(eight_bit_values("F8_E4M3")), initial=0))
    448.0
    """
    exponent_bits, mantissa_bits, bias, ieee = _EIGHT[code]
    byte = np.arange(256)
    mantissa = byte & ((1 << mantissa_bits) - 1)
    exponent = (byte >> mantissa_bits) & ((1 << exponent_bits) - 1)
    normal = exponent > 0
    values = np.ldexp((normal << mantissa_bits) + mantissa, np.maximum(exponent, 1) - bias - mantissa_bits)
    values = np.where(byte & 0x80, -values, values).astype(np.float64)
    top = exponent == (1 << exponent_bits) - 1
    if ieee:
        values[top] = np.where(mantissa[top] == 0, np.where(byte[top] & 0x80, -np.inf, np.inf), np.nan)
    else:
        values[top & (mantissa == (1 << mantissa_bits) - 1)] = np.nan
    table: Array = values.astype(np.float32)
    return table


def _nearest_eight(values: Array, code: str) -> npt.NDArray[np.uint8]:
    table = eight_bit_values(code)[:128].astype(np.float64)  # the rest are their negatives
    finite = table[np.isfinite(table)]
    size = np.abs(values.astype(np.float64))
    above = np.searchsorted(finite, size, side="left").clip(1, len(finite) - 1)
    below = above - 1
    middle = (finite[above] + finite[below]) / 2
    # At a tie the one whose last bit is 0: bits grow with the values.
    up = (size > middle) | ((size == middle) & (above % 2 == 0))
    bits = np.where(up, above, below).astype(np.uint8)
    overflow = size >= finite[-1] + (finite[-1] - finite[-2]) / 2
    bits[overflow] = 0x7C if _EIGHT[code][3] else 0x7F  # infinity, or NaN where there is none
    return (bits | (np.signbit(values).astype(np.uint8) << np.uint8(7))).reshape(-1)


def _to_odd(values: Array) -> Array:
    with np.errstate(over="ignore"):
        near = values.astype(np.float32)
    back = near.astype(np.float64)
    bits = near.view(np.uint32).copy()
    # Towards zero, then the last bit set where anything was lost.
    bits -= ((np.abs(back) > np.abs(values)) & np.isfinite(near)).astype(np.uint32)
    bits |= (bits.view(np.float32).astype(np.float64) != values).astype(np.uint32)
    return bits.view(np.float32)
