"""The first byte of every element, then the second of every element, ...: all in one zstd frame."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import zstd
from .codec import NOTHING, Beside, Bytes

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Elements = npt.NDArray[np.unsignedinteger[Any]]


def encode(data: Bytes, width: int, beside: Beside = NOTHING) -> bytes:
    """A frame of the planes."""
    return pack(elements(data, width))


def decode(stored: Bytes, size: int, width: int, beside: Beside = NOTHING) -> memoryview:
    """The elements, put together again."""
    return as_bytes(unpack(stored, size // width, width))


def elements(data: Bytes, width: int) -> Elements:
    """Bytes as unsigned little-endian integers of 1, 2, 4 or 8 bytes."""
    import numpy as np

    return np.frombuffer(data, f"<u{width}")


def changed(data: Bytes, base: Bytes, width: int) -> float:
    """The share of elements that differ.

    >>> changed(b"abcd", b"abce", 2)
    0.5
    """
    import numpy as np

    differs = elements(data, width) != elements(base, width)
    return int(np.count_nonzero(differs)) / int(differs.size)


def as_bytes(values: Any) -> memoryview:
    """The bytes of an array, without a copy; numpy gives none where there are no elements."""
    return memoryview(values).cast("B") if values.size else memoryview(b"")


def pack(values: Elements) -> bytes:
    """A frame of the planes of some elements."""
    import numpy as np

    # The bytes that hold sign and exponent repeat, the mantissa's do not.
    planes = np.empty((values.itemsize, values.size), np.uint8)
    for k in range(values.itemsize):
        # The bits above are cut off: several times as fast as a copy of every width-th byte.
        np.right_shift(values, 8 * k, out=planes[k], casting="unsafe")
    return zstd.entropy(planes.reshape(-1).data)


def unpack(stored: Bytes, count: int, width: int) -> Elements:
    """The elements that `pack` was given.

    Raises:
        ValueError: `stored` is not what it gives for so many.
    """
    import numpy as np

    planes = np.frombuffer(zstd.decode(stored, count * width), np.uint8).reshape(width, count)
    values: Elements = planes[width - 1].astype(f"<u{width}")
    for k in reversed(range(width - 1)):
        values <<= 8
        values |= planes[k]
    return values
