"""One zstd frame that states its content size."""

from __future__ import annotations

import threading

import zstandard

from .codec import NOTHING, Beside, Bytes

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


def encode(data: Bytes, width: int = 1, beside: Beside = NOTHING) -> bytes:
    """A frame of `data`."""
    return _CONTEXTS.compressor.compress(data)


def entropy(data: Bytes) -> bytes:
    """A frame of `data` that looks for frequent bytes rather than for repeated strings; `decode` reads it too."""
    return _CONTEXTS.entropy.compress(data)


def decode(stored: Bytes, size: int, width: int = 1, beside: Beside = NOTHING) -> bytes:
    """What a frame holds, which must state `size`."""
    try:
        # The frame says how much memory it wants, and is believed by the library: ask before it is given any.
        stated = zstandard.get_frame_parameters(stored).content_size
        if stated != size:
            raise ValueError(f"a frame of {stated} bytes, {size} expected")
        return _CONTEXTS.decompressor.decompress(stored, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from None
