"""How the bytes of a chunk may be kept: one row a codec, one file a codec. Ids never depend on it.

A codec's number is written into every object that uses it, so a number is never reused.
"""

from __future__ import annotations

from . import lowrank, ordered, planes, prefix, raw, same, sparse, xor, zstd
from .codec import NOTHING, Beside, Bytes, Codec

__all__ = ["CODECS", "NOTHING", "SAME", "Beside", "Bytes", "Codec", "lowrank", "probed", "smallest"]

RAW, ZSTD, PLANES, SAME, XOR, ORDERED, SPARSE, PREFIX, LOW_RANK = range(9)

CODECS: dict[int, Codec] = {
    RAW: Codec("raw", raw.encode, raw.decode),
    ZSTD: Codec("zstd", zstd.encode, zstd.decode),
    PLANES: Codec("planes+zstd", planes.encode, planes.decode, elements=True),
    SAME: Codec("same", same.encode, same.decode, delta=True),
    XOR: Codec("xor+planes+zstd", xor.encode, xor.decode, delta=True, elements=True),
    ORDERED: Codec("ordered", ordered.encode, ordered.decode, delta=True, elements=True),
    SPARSE: Codec("sparse", sparse.encode, sparse.decode, delta=True, elements=True),
    PREFIX: Codec("prefix", prefix.encode, prefix.decode, delta=True),
    LOW_RANK: Codec("low rank", lowrank.encode, lowrank.decode, delta=True, elements=True),
}

WORTH_TRYING = 64  # below this many bytes a frame's own header eats the gain
MANY = 0.5  # of the bytes changed: what stood there has moved, or is gone
SAMPLE = 1 << 16  # bytes on which delta and whole are compared


def smallest(data: Bytes, width: int, beside: Beside | None = None) -> tuple[int, bytes]:
    """A chunk as it is kept: the number of the codec, and the bytes; raw where nothing is shorter.

    What is tried follows from the share of elements that differ from the base's; between a delta and none a sample
    decides.

    >>> smallest(bytes(1000), 1)[0], smallest(bytes(1000), 4)[0], smallest(b"short", 1)
    (1, 2, (0, b'short'))
    >>> smallest(b"short", 1, Beside(b"short"))
    (3, b'')
    """
    if beside is not None and data == beside.data:
        return SAME, b""
    if len(data) >= WORTH_TRYING:
        numbers = _worth_trying(data, width, beside)
        number, stored = min(((n, CODECS[n].encode(data, width, beside or NOTHING)) for n in numbers), key=_length)
        if len(stored) < len(data):
            return number, stored
    return RAW, bytes(data)


def probed(data: Bytes, width: int, beside: Beside) -> float:
    """About how many bytes a chunk takes beside a base, over how many it has: found on a sample from its middle.

    >>> probed(bytes(1000), 4, Beside(bytes(1000)))
    0.0
    """
    part, base = _sample(data, width), _sample(beside.data, width)
    return len(smallest(part, width, Beside(base))[1]) / max(1, len(part))


def _worth_trying(data: Bytes, width: int, beside: Beside | None) -> list[int]:
    if len(data) % width:
        width = 1
    whole = PLANES if width > 1 else ZSTD
    if beside is None:
        return [whole]
    if beside.shared:
        return [LOW_RANK]
    share = planes.changed(data, beside.data, width)
    if share <= sparse.FEW:
        return [SPARSE]
    if width == 1 and share > MANY:
        return [whole, PREFIX]
    if len(data) <= SAMPLE:
        return [whole, ORDERED]
    part, base = _sample(data, width), _sample(beside.data, width)
    return [min((whole, ORDERED), key=lambda n: len(CODECS[n].encode(part, width, Beside(base))))]


def _sample(data: Bytes, width: int) -> memoryview:
    """Whole elements from the middle."""
    at = max(0, (len(data) - SAMPLE) // 2) // width * width
    return memoryview(data)[at : at + SAMPLE]


def _length(made: tuple[int, bytes]) -> int:
    return len(made[1])
