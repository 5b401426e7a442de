"""The bytes as they are."""

from __future__ import annotations

from .codec import NOTHING, Beside, Bytes


def encode(data: Bytes, width: int, beside: Beside = NOTHING) -> bytes:
    """`data`."""
    return bytes(data)


def decode(stored: bytes, size: int, width: int, beside: Beside = NOTHING) -> bytes:
    """`stored`."""
    if len(stored) != size:
        raise ValueError(f"{len(stored)} bytes kept, {size} expected")
    return stored
