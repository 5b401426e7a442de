"""Zstd frames that state their content size, so that a reader knows how much memory one takes before it takes it."""

from __future__ import annotations

import threading

import zstandard

LEVEL = 1  # on weights, higher levels cost time and gain nothing


class _Contexts(threading.local):
    """Making a context costs more than compressing a small chunk, and a context belongs to one thread."""

    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor(level=LEVEL)
        # For bytes that repeat in value but not in order, as those of weights do: a table of matches of 64 entries stays
        # in the first cache, finds runs and little else, and so leaves nearly everything to the Huffman coder. On planes
        # of MiniLM it takes half the time of level 1, and 1 % fewer bytes, which is what short, accidental matches cost.
        self.entropy = zstandard.ZstdCompressor(
            compression_params=zstandard.ZstdCompressionParameters(
                strategy=zstandard.STRATEGY_FAST,
                window_log=22,
                hash_log=6,
                chain_log=6,
                search_log=1,
                min_match=7,
                target_length=0,
            )
        )
        self.decompressor = zstandard.ZstdDecompressor()


_CONTEXTS = _Contexts()


def frame(data: bytes | bytearray | memoryview, level: int = LEVEL) -> bytes:
    """Bytes as one frame.

    >>> unframe(frame(bytes(1000)), 1000) == bytes(1000)
    True
    """
    return (_CONTEXTS.compressor if level == LEVEL else zstandard.ZstdCompressor(level=level)).compress(data)


def entropy_frame(data: bytes | bytearray | memoryview) -> bytes:
    """Bytes as one frame that is made for frequent values rather than for repeated strings."""
    return _CONTEXTS.entropy.compress(data)


def unframe(stored: bytes | bytearray | memoryview, size: int) -> bytes:
    """The content of a frame that has to be `size` bytes.

    Raises:
        ValueError: it is no frame of that size and nothing else.
    """
    if stated(stored) != size:
        raise ValueError(f"a frame of {stated(stored)} bytes, {size} expected")
    try:
        return _CONTEXTS.decompressor.decompress(stored, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from None


def stated(stored: bytes | bytearray | memoryview) -> int:
    """The content size that a frame states.

    Raises:
        ValueError: it is no frame.
    """
    try:
        return int(zstandard.get_frame_parameters(stored).content_size)
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from None
