r"""By how much every element differs from the base's, counted in steps of its last bit.

Bit patterns become integers in the order of the numbers they stand for (x -> x xor (x >> bits-1 & 0111...)), are
subtracted, and the difference d is folded so that small ones of both signs are small: 2 d for d >= 0, else -2 d - 1. This
goes up and down for every pattern, NaNs among them. Then, whichever the share of changed elements makes smaller:

    0  planes of the differences of all elements
    1  4 bytes of length, a frame of a bitmap of the changed elements, planes of the differences of those
"""

from __future__ import annotations

from typing import Any

from . import planes, zstd
from .codec import NOTHING, Beside, Bytes

DENSE = 0.9  # above this share of changed elements a bitmap is not worth its bits


def encode(data: Bytes, width: int, beside: Beside = NOTHING) -> bytes:
    """Differences from the base, and where they are."""
    import numpy as np

    differs = planes.elements(data, width) != planes.elements(beside.data, width)
    where = np.flatnonzero(differs)
    if len(where) > DENSE * len(differs):
        return b"\0" + planes.pack(difference(data, beside.data, width))
    bitmap = zstd.entropy(np.packbits(differs).data)
    return b"\1" + len(bitmap).to_bytes(4, "little") + bitmap + planes.pack(picked(where, data, beside.data, width))


def decode(stored: bytes, size: int, width: int, beside: Beside = NOTHING) -> memoryview:
    """The base with the differences added."""
    import numpy as np

    count = size // width
    view = memoryview(stored)
    if stored[:1] == b"\0":
        return added(planes.unpack(view[1:], count, width), beside.data, width)
    if stored[:1] != b"\1":
        raise ValueError("neither all differences nor some")
    values_at = 5 + int.from_bytes(view[1:5], "little")
    bits = np.frombuffer(zstd.decode(view[5:values_at], -(-count // 8)), np.uint8)
    where = np.flatnonzero(np.unpackbits(bits, count=count).view(bool))
    return placed(where, planes.unpack(view[values_at:], len(where), width), beside.data, width)


def difference(data: Bytes, base: Bytes, width: int) -> planes.Elements:
    """Folded differences of the ordered bit patterns, modulo the number of patterns."""
    d = _ordered(data, width)
    d -= _ordered(base, width)
    folded = d >> (8 * width - 1)
    d <<= 1
    folded ^= d
    found: planes.Elements = folded.view(f"<u{width}")
    return found


def picked(where: Any, data: Bytes, base: Bytes, width: int) -> planes.Elements:
    """`difference` of the elements at `where` alone."""
    ours, theirs = (planes.as_bytes(planes.elements(side, width)[where]) for side in (data, base))
    return difference(ours, theirs, width)


def added(changes: planes.Elements, base: Bytes, width: int) -> memoryview:
    """The elements that `difference` was given, from all differences, which are overwritten."""
    signs: Any = -(changes & 1).astype(changes.dtype, copy=False)
    changes >>= 1
    changes ^= signs
    d = changes.view(f"<i{width}")
    d += _ordered(base, width)
    d ^= _flips(d, width)
    return planes.as_bytes(d)


def placed(where: Any, changes: planes.Elements, base: Bytes, width: int) -> memoryview:
    """The base's elements, with those at `where` changed."""
    import numpy as np

    data = bytearray(base)
    into = np.frombuffer(data, f"<u{width}")
    into[where] = planes.elements(added(changes, planes.as_bytes(into[where]), width), width)
    return memoryview(data)


def _ordered(data: Bytes, width: int) -> Any:
    import numpy as np

    x = np.frombuffer(data, f"<i{width}")
    return x ^ _flips(x, width)


def _flips(x: Any, width: int) -> Any:
    """All bits but the sign of a negative number, whose magnitude grows downwards."""
    flips = x >> (8 * width - 1)
    flips &= (1 << (8 * width - 1)) - 1
    return flips
