"""A zstd frame that may copy from the base as if it stood before: for files, trees and JSON."""

from __future__ import annotations

import zstandard

from ...checkpoint import CHUNK
from .codec import NOTHING, Beside, Bytes

LEVEL = 3
WINDOW_LOG = 23  # the base's chunk and our own: 8 MiB


def encode(data: Bytes, width: int = 1, beside: Beside = NOTHING) -> bytes:
    """A frame of `data`, beginning from the base."""
    parameters = zstandard.ZstdCompressionParameters.from_level(
        LEVEL, window_log=WINDOW_LOG if len(beside.data) + len(data) > 1 << 16 else 17, write_content_size=True
    )
    return zstandard.ZstdCompressor(dict_data=_dictionary(beside), compression_params=parameters).compress(data)


def decode(stored: bytes, size: int, width: int = 1, beside: Beside = NOTHING) -> bytes:
    """What the frame holds."""
    try:
        stated = zstandard.get_frame_parameters(stored).content_size
        if stated != size:
            raise ValueError(f"a frame of {stated} bytes, {size} expected")
        reader = zstandard.ZstdDecompressor(dict_data=_dictionary(beside), max_window_size=2 * CHUNK)
        return reader.decompress(stored, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from None


def _dictionary(beside: Beside) -> zstandard.ZstdCompressionDict:
    return zstandard.ZstdCompressionDict(bytes(beside.data), dict_type=zstandard.DICT_TYPE_RAWCONTENT)
