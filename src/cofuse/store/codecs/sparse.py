"""A few changed elements: how many unchanged ones stand before each, and by how much it differs.

4 bytes of length, planes of the gaps as 4-byte integers, then planes of the differences (see `ordered`).
"""

from __future__ import annotations

from ...checkpoint.frames import stated
from . import ordered, planes
from .codec import NOTHING, Beside, Bytes

FEW = 0.1  # of the elements changed: up to here gaps take fewer bytes than the bitmap of `ordered`
GAP = 4  # bytes of a gap; a chunk has at most 2^22 elements


def encode(data: Bytes, width: int, beside: Beside = NOTHING) -> bytes:
    """Gaps and differences."""
    import numpy as np

    where = np.flatnonzero(planes.elements(data, width) != planes.elements(beside.data, width))
    gaps = planes.pack(np.diff(where, prepend=-1).astype(f"<u{GAP}") - np.uint32(1))
    return len(gaps).to_bytes(4, "little") + gaps + planes.pack(ordered.picked(where, data, beside.data, width))


def decode(stored: bytes, size: int, width: int, beside: Beside = NOTHING) -> memoryview:
    """The base, with the differences added at their places."""
    import numpy as np

    view = memoryview(stored)
    values_at = 4 + int.from_bytes(view[:4], "little")
    count = stated(view[4:values_at]) // GAP
    if count > size // width:
        raise ValueError(f"{count} changes of {size // width} elements")
    where = np.cumsum(planes.unpack(view[4:values_at], count, GAP).astype(np.int64) + 1) - 1
    if count and where[-1] >= size // width:
        raise ValueError(f"a change at {where[-1]} of {size // width} elements")
    return ordered.placed(where, planes.unpack(view[values_at:], count, width), beside.data, width)
