"""The base's bytes as they are: nothing is kept."""

from __future__ import annotations

from .codec import NOTHING, Beside, Bytes


def encode(data: Bytes, width: int, beside: Beside = NOTHING) -> bytes:
    """No bytes, of data that equals its base.

    Raises:
        ValueError: it does not.
    """
    if data != beside.data:
        raise ValueError("not the base's bytes")
    return b""


def decode(stored: bytes, size: int, width: int, beside: Beside = NOTHING) -> Bytes:
    """The base's bytes."""
    if stored:
        raise ValueError(f"{len(stored)} bytes kept, 0 expected")
    return beside.data
