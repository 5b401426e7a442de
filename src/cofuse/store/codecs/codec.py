"""What a codec is: a pair of pure functions between the bytes of a chunk and how they are kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ...checkpoint import TensorSpec

Bytes = bytes | bytearray | memoryview


class Beside(NamedTuple):
    """What a delta is read beside.

    Attributes:
        data: the base's bytes at the chunk's place, cut or filled with zeros to the chunk's length.
        at: the chunk's first byte in its object.
        shared: what all chunks of the object share.
        spec: the object's dtype and shape, if it is a tensor.
    """

    data: Bytes = b""
    at: int = 0
    shared: bytes = b""
    spec: TensorSpec | None = None


NOTHING = Beside()


class Codec(NamedTuple):
    """`encode(data, width, beside)` and `decode(stored, size, width, beside)`, data of at least one byte.

    `width` is the bytes of an element; data that is not whole elements is for codecs with `elements` false. `delta` says
    that a base is needed. `decode` raises ValueError when `stored` is not what `encode` gives for `size` bytes, takes no
    memory beyond a few times `size`, and otherwise gives `size` bytes, whose digest the caller checks.
    """

    name: str
    encode: Callable[[Bytes, int, Beside], bytes]
    decode: Callable[[bytes, int, int, Beside], Bytes]
    delta: bool = False
    elements: bool = False
