"""How the bytes of a chunk may be kept: one row a codec. Ids never depend on it.

A codec is a pair of pure functions. Its number is written into every object that uses it, so a number is never reused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import zstandard

Bytes = bytes | bytearray | memoryview

LEVEL = 1  # of zstd: on weights, higher levels cost time and gain nothing
WORTH_TRYING = 64  # below this many bytes a frame's own header eats the gain


class Codec(NamedTuple):
    """`encode(data, width)` and `decode(stored, size, width)`: data of whole elements of `width` bytes, never empty.

    `decode` raises ValueError when `stored` is not what `encode` gives for `size` bytes.
    """

    name: str
    encode: Callable[[Bytes, int], bytes]
    decode: Callable[[bytes, int, int], bytes | bytearray]


def _raw(data: Bytes, width: int) -> bytes:
    return bytes(data)


def _unraw(stored: bytes, size: int, width: int) -> bytes:
    if len(stored) != size:
        raise ValueError(f"{len(stored)} bytes kept, {size} expected")
    return stored


def _zstd(data: Bytes, width: int) -> bytes:
    return zstandard.ZstdCompressor(level=LEVEL).compress(data)


def _unzstd(stored: bytes, size: int, width: int) -> bytes:
    try:
        # The frame says how much memory it wants, and is believed by the library: ask before it is given any.
        stated = zstandard.get_frame_parameters(stored).content_size
        if stated != size:
            raise ValueError(f"a frame of {stated} bytes, {size} expected")
        return zstandard.ZstdDecompressor().decompress(stored, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from None


def _planes_zstd(data: Bytes, width: int) -> bytes:
    import numpy as np

    # [element, byte] -> [byte, element]: the bytes that hold sign and exponent repeat, the mantissa's do not.
    planes = np.frombuffer(data, np.uint8).reshape(-1, width).T
    return _zstd(np.ascontiguousarray(planes).data.cast("B"), width)


def _unplanes_zstd(stored: bytes, size: int, width: int) -> bytearray:
    import numpy as np

    planes = np.frombuffer(_unzstd(stored, size, width), np.uint8).reshape(width, -1)
    data = bytearray(size)
    elements = np.frombuffer(data, np.uint8).reshape(-1, width)
    for k in range(width):
        elements[:, k] = planes[k]
    return data


CODECS: dict[int, Codec] = {
    0: Codec("raw", _raw, _unraw),
    1: Codec("zstd", _zstd, _unzstd),
    2: Codec("planes+zstd", _planes_zstd, _unplanes_zstd),
}


def smallest(data: Bytes, width: int) -> tuple[int, bytes]:
    """A chunk as it is kept: the codec for elements of this width, or raw where that is no longer.

    >>> smallest(bytes(1000), 1)[0], smallest(bytes(1000), 4)[0], smallest(b"short", 1)
    (1, 2, (0, b'short'))
    """
    if len(data) >= WORTH_TRYING:
        number = 2 if width > 1 and len(data) % width == 0 else 1
        stored = CODECS[number].encode(data, width)
        if len(stored) < len(data):
            return number, stored
    return 0, bytes(data)
