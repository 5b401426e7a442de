"""What differs from the base bit by bit (exclusive or), in planes and zstd."""

from __future__ import annotations

from . import planes
from .codec import NOTHING, Beside, Bytes


def encode(data: Bytes, width: int, beside: Beside = NOTHING) -> bytes:
    """The planes of `data` xor base."""
    return planes.encode(_xor(data, beside.data), width)


def decode(stored: bytes, size: int, width: int, beside: Beside = NOTHING) -> memoryview:
    """What was kept, xor base."""
    return _xor(planes.decode(stored, size, width), beside.data)


def _xor(data: Bytes, base: Bytes) -> memoryview:
    import numpy as np

    return np.bitwise_xor(np.frombuffer(data, np.uint8), np.frombuffer(base, np.uint8)).data.cast("B")
