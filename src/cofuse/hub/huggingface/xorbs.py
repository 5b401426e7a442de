"""What clients with hf_xet send instead of files: xorbs, which hold chunks, and shards, which make files of these.

    xorb     chunks one after another, each after eight bytes: 0, its stored size (3 bytes), how it is compressed (0 not, 1
             LZ4 frame, 2 bytes of every fourth place together, then LZ4), its size (3 bytes); then, maybe, a footer "XETBLOB"
    shard    48 bytes: a tag of 32, version 2, size of the footer; then rows of 48 bytes. A file is one row (its hash, flags,
             how many parts), its parts (xorb, flags, bytes, first chunk, one past the last), as many rows of hashes if flag
             31 is set, a row with its SHA-256 if flag 30 is. A row of 0xff ends the files.

Hashes are written as four little-endian numbers of 64 bits. All numbers are little-endian. What is said here was read from
what hf_xet 1.8 sends; a hash of a chunk, xorb or file is not looked at, because the SHA-256 of the whole file is.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..faults import Refused

MAX_XORB = 96 * 1024 * 1024  # bytes
MAX_SHARD = 64 * 1024 * 1024
_TAG = bytes.fromhex("48465265706f4d6574614461746100556967456a7b815783a5bdd95ccdd14aa9")
_VERSION = 2
_ROW = 48
_END = b"\xff" * 32
_VERIFIED, _HASHED = 1 << 31, 1 << 30
_MAX_CHUNK = 1024 * 1024
_MAX_CHUNKS = 16_384  # of a xorb; clients put 8192 into one at most


@dataclass(frozen=True, slots=True)
class Part:
    """Chunks of a xorb, one after another, that are the next bytes of a file."""

    xorb: str
    first: int
    stop: int
    size: int


@dataclass(frozen=True, slots=True)
class Made:
    """A file, made of parts.

    Attributes:
        parts: in order.
        sha256: of all of it, as its sender says; None where they do not.
    """

    parts: tuple[Part, ...]
    sha256: str | None

    @property
    def size(self) -> int:
        """Its bytes."""
        return sum(part.size for part in self.parts)


def read_shard(raw: bytes) -> list[Made]:
    """The files that a shard tells of.

    Raises:
        Refused: it is no shard.
    """
    if raw[:32] != _TAG or len(raw) < _ROW or struct.unpack_from("<Q", raw, 32)[0] != _VERSION:
        raise Refused("not a shard", expected=f"version {_VERSION}")
    rows = _rows(raw)
    found: list[Made] = []
    for row in rows:
        if row[:32] == _END:
            return found
        flags, count = struct.unpack_from("<II", row, 32)
        parts = tuple(_part(next(rows)) for _ in range(count))
        for _ in range(count if flags & _VERIFIED else 0):
            next(rows)
        found.append(Made(parts, _hash(next(rows)) if flags & _HASHED else None))
    raise Refused("truncated shard")


def _rows(raw: bytes) -> Iterator[bytes]:
    for at in range(_ROW, len(raw) - _ROW + 1, _ROW):
        yield raw[at : at + _ROW]
    raise Refused("truncated shard")


def _part(row: bytes) -> Part:
    _, size, first, stop = struct.unpack_from("<IIII", row, 32)
    if first >= stop:
        raise Refused("a part of a file without chunks")
    return Part(_hash(row), first, stop, size)


def _hash(row: bytes) -> str:
    return "".join(f"{number:016x}" for number in struct.unpack_from("<4Q", row))


class Xorb:
    """A xorb in a file; where its chunks are is found out once.

    Args:
        path: the file.

    Raises:
        Refused: it is none.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._spots: list[tuple[int, int, int, int]] = []  # offset, stored, way, size
        size, at = path.stat().st_size, 0
        with open(path, "rb") as file:
            while at < size:
                file.seek(at)
                head = file.read(8)
                if head[:1] != b"\0":
                    break  # the footer
                if len(head) < 8:
                    raise Refused("truncated xorb")
                stored, length = int.from_bytes(head[1:4], "little"), int.from_bytes(head[5:8], "little")
                # Empty ones would take a file of any number of them, and no end of time.
                if not 0 < length <= _MAX_CHUNK or stored > 2 * _MAX_CHUNK or len(self._spots) >= _MAX_CHUNKS:
                    raise Refused("a xorb's chunks are too many, empty or too large", got=length, expected=_MAX_CHUNK)
                self._spots.append((at + 8, stored, head[4], length))
                at += 8 + stored
        if at > size:
            raise Refused("truncated xorb")

    def read(self, part: Part) -> Iterator[bytes]:
        """The bytes of a part, chunk by chunk.

        Raises:
            Refused: it has no such chunks, or they are damaged, or of another size.
        """
        if part.stop > len(self._spots):
            raise Refused("a xorb has no such chunk", got=part.stop, expected=f"at most {len(self._spots)}")
        spots = self._spots[part.first : part.stop]
        if sum(length for *_, length in spots) != part.size:
            raise Refused("a part of a file is of another size", got=part.size)
        with open(self.path, "rb") as file:
            for at, stored, way, length in spots:
                file.seek(at)
                yield _unpacked(file.read(stored), way, length)


def _unpacked(data: bytes, way: int, length: int) -> bytes:
    if way > 2:
        raise Refused("a chunk is compressed in a way that is not known", got=way)
    if way:
        import pyarrow

        try:
            data = pyarrow.Codec("lz4").decompress(data, length).to_pybytes()
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise Refused("a chunk is damaged", got=str(error)[:100]) from None
    if len(data) != length:
        raise Refused("a chunk is of another size", got=len(data), expected=length)
    return data if way < 2 else _interleaved(data)


def _interleaved(data: bytes) -> bytes:
    """Bytes of every fourth place, which lay together, back in their places.

    >>> _interleaved(b"aabbcd")
    b'abcdab'
    """
    out, at = bytearray(len(data)), 0
    for place in range(4):
        count = len(range(place, len(data), 4))
        out[place::4] = data[at : at + count]
        at += count
    return bytes(out)
