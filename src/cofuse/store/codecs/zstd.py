"""One zstd frame that states its content size."""

from __future__ import annotations

from ...checkpoint.frames import entropy_frame, frame, unframe
from .codec import NOTHING, Beside, Bytes


def encode(data: Bytes, width: int = 1, beside: Beside = NOTHING) -> bytes:
    """A frame of `data`."""
    return frame(data)


def entropy(data: Bytes) -> bytes:
    """A frame of `data` that looks for frequent bytes rather than for repeated strings; `decode` reads it too."""
    return entropy_frame(data)


def decode(stored: Bytes, size: int, width: int = 1, beside: Beside = NOTHING) -> bytes:
    """What a frame holds, which must state `size`."""
    return unframe(stored, size)
