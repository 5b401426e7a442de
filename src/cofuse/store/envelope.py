"""What stands around the chunks in an object's file: what the object is, where each chunk lies, and beside what.

    magic, lengths | head (JSON) | one row a chunk: BLAKE3 of its bytes, codec, stored length | BLAKE3 of all that
    ... then the chunks, one after another, to the end of the file
    ... but for the tail of an object kept as a delta: what its chunks share | base, lengths | BLAKE3

The id follows from head and digests alone, so an envelope proves that it belongs to the id asked for before any chunk
is read, and each chunk proves itself when it is. Written down in docs/formats/store.md. Until it has passed `parse`, an
envelope is hostile: nothing is allocated that the file's own size does not cover.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from blake3 import blake3

from ..checkpoint import CHUNK, TensorSpec, tensor_id_of
from ..checkpoint.dtypes import DTYPES, bits
from ..checkpoint.header import MAX_RANK
from ..errors import CorruptError
from .codecs import CODECS

MAGIC = b"COFUSE\x00\x01"
MAGIC_DELTA = b"COFUSE\x00\x02"
MAX_HEAD = 4096
MAX_CHUNKS = 1 << 20  # 4 TiB
MAX_SHARED = CHUNK
_START = struct.Struct("<8sII")  # magic, bytes of head, number of chunks
_ROW = struct.Struct("<32sB3sI")  # digest, codec, check, bytes stored
_TAIL = struct.Struct("<32s32sI")  # base, BLAKE3 of what is shared, bytes of it
_SUM = 32
_JSON = json.JSONEncoder(sort_keys=True, separators=(",", ":"))


class Row(NamedTuple):
    """One chunk: the BLAKE3 of its bytes, the codec it is kept with, a check of how it is kept, and its bytes stored.

    The digest says whether what was read is right. The check is for what no reader would miss: a frame has bits that
    mean nothing, and one of them that has flipped is damage all the same.
    """

    digest: bytes
    codec: int
    check: bytes
    stored: int

    @classmethod
    def of(cls, digest: bytes, codec: int, stored: bytes) -> Row:
        """The row of a chunk with this digest, kept as these bytes."""
        return cls(digest, codec, check_of(codec, stored), len(stored))


def check_of(codec: int, stored: bytes) -> bytes:
    """The first three bytes of the BLAKE3 of a chunk as it is kept; zeros for one kept raw, whose digest is enough."""
    return blake3(stored).digest(length=3) if codec else bytes(3)


@dataclass(frozen=True, slots=True)
class Head:
    """What an object is, but for its bytes.

    A tensor has a spec. The others have a size: `file` holds a file or a raw safetensors header, `tree` and `commit`
    canonical JSON. The time of a commit is here because nothing here but kind, size and spec goes into the id.
    """

    kind: str
    size: int
    spec: TensorSpec | None = None
    time_ns: int | None = None

    @classmethod
    def tensor(cls, spec: TensorSpec) -> Head:
        """The head of a tensor."""
        return cls("tensor", spec.nbytes, spec)

    @property
    def width(self) -> int:
        """Bytes of one element, for codecs that know about elements; 1 where there are none."""
        return max(1, bits(self.spec.dtype) // 8) if self.spec else 1

    @property
    def chunks(self) -> int:
        """Number of chunks."""
        return -(-self.size // CHUNK)

    def id(self, digests: Iterable[bytes]) -> str:
        r"""The id of the object with this head and these chunk digests.

        tensor   see checkpoint.identity
        others   BLAKE3("cofuse KIND 1\n" size "\n" digests)
        """
        if self.spec is not None:
            return tensor_id_of(self.spec, digests)
        h = blake3(f"cofuse {self.kind} 1\n{self.size}\n".encode())
        for digest in digests:
            h.update(digest)
        return h.hexdigest()

    def encode(self) -> bytes:
        """The JSON that is kept."""
        document: dict[str, Any] = {"kind": self.kind}
        if self.spec is not None:
            document |= {"dtype": self.spec.dtype, "shape": list(self.spec.shape)}
        else:
            document["size"] = self.size
        if self.time_ns is not None:
            document["time"] = self.time_ns
        return _JSON.encode(document).encode()

    @classmethod
    def decode(cls, raw: bytes, where: str) -> Head:
        """Read the JSON back.

        Raises:
            CorruptError: it is not what `encode` writes.
        """
        try:
            match json.loads(raw):
                case {"kind": "tensor", "dtype": str(dtype), "shape": list(shape), **rest} if (
                    not rest and dtype in DTYPES and len(shape) <= MAX_RANK and all(map(_whole, shape))
                ):
                    head = cls.tensor(TensorSpec(dtype, tuple(shape)))
                case {"kind": "file" | "tree" as kind, "size": size, **rest} if not rest and _whole(size):
                    head = cls(kind, size)
                case {"kind": "commit", "size": size, "time": time, **rest} if (
                    not rest and _whole(size) and _whole(time)
                ):
                    head = cls("commit", size, None, time)
                case _:
                    raise ValueError("unknown keys or values")
        except (ValueError, RecursionError) as error:
            raise CorruptError("the object's head is not readable", where=where, got=str(error)[:80]) from None
        if head.size < 0 or head.encode() != raw:
            raise CorruptError("the object's head is not canonical", where=where, got=ascii(raw[:80]))
        return head


class Shared(NamedTuple):
    """What the chunks of a delta share: the BLAKE3 of its bytes, and how many there are."""

    digest: bytes
    size: int


NOTHING_SHARED = Shared(blake3().digest(), 0)


@dataclass(frozen=True, slots=True)
class Envelope:
    """A head and the rows of its chunks; for an object kept as a delta, also what it is read beside.

    How it is kept may change (`rewriting`), what it is may not: the id depends on head and digests alone.
    """

    head: Head
    rows: Sequence[Row]
    offsets: Sequence[int]  # in the file: where each chunk starts
    base: str | None = None  # id of the object that delta chunks are read beside
    shared: Shared = NOTHING_SHARED

    @classmethod
    def of(cls, head: Head, rows: Sequence[Row], base: str | None = None, shared: Shared = NOTHING_SHARED) -> Envelope:
        """With offsets worked out."""
        at = length(head)
        offsets = []
        for row in rows:
            offsets.append(at)
            at += row.stored
        return cls(head, rows, offsets, base, shared)

    @property
    def id(self) -> str:
        """The id that the object has by what its envelope says."""
        return self.head.id(row.digest for row in self.rows)

    def chunk_bytes(self, k: int) -> int:
        """Bytes of chunk `k` as they are handed out."""
        return min(CHUNK, self.head.size - k * CHUNK)

    @property
    def end(self) -> int:
        """In the file: where the chunks end."""
        return length(self.head) + sum(row.stored for row in self.rows)

    def encode(self) -> bytes:
        """The bytes that stand at the start of the object's file."""
        head = self.head.encode()
        magic = MAGIC if self.base is None else MAGIC_DELTA
        body = _START.pack(magic, len(head), len(self.rows)) + head + b"".join(_ROW.pack(*row) for row in self.rows)
        return body + blake3(body).digest()

    def tail(self) -> bytes:
        """The bytes that stand at the end of the object's file, after what is shared; none for a whole object."""
        if self.base is None:
            return b""
        body = _TAIL.pack(bytes.fromhex(self.base), *self.shared)
        # Bound to the start, so that a tail cannot be another object's.
        return body + blake3(self.encode()[-_SUM:] + body).digest()


def length(head: Head) -> int:
    """Bytes of the envelope of an object with this head: known before any of its chunks is."""
    return _START.size + len(head.encode()) + head.chunks * _ROW.size + _SUM


def parse(fd: int, where: str) -> Envelope:
    """Read and check the envelope of an open object file.

    Raises:
        CorruptError: for whatever is wrong with it; no chunk has been read.
    """
    size = os.fstat(fd).st_size
    start = os.pread(fd, _START.size, 0)
    if len(start) < _START.size:
        raise CorruptError("truncated object", where=where, got=f"{size} bytes")
    magic, head_bytes, count = _START.unpack(start)
    if magic not in (MAGIC, MAGIC_DELTA):
        raise CorruptError("not an object", where=where, got=ascii(magic), expected=ascii(MAGIC))
    whole = _START.size + head_bytes + count * _ROW.size + _SUM
    if head_bytes > MAX_HEAD or count > MAX_CHUNKS or whole > size:
        raise CorruptError(
            "envelope does not fit its file",
            where=where,
            got=f"head of {head_bytes} bytes, {count} chunks",
            expected=f"at most {size} bytes in all",
        )
    raw = os.pread(fd, whole, 0)
    if len(raw) < whole or blake3(raw[:-_SUM]).digest() != raw[-_SUM:]:
        raise CorruptError("envelope is damaged", where=where)
    rows_at = _START.size + head_bytes
    head = Head.decode(raw[_START.size : rows_at], where)
    rows = [Row(*fields) for fields in _ROW.iter_unpack(raw[rows_at:-_SUM])]
    if len(rows) != head.chunks:
        raise CorruptError("wrong number of chunks", where=where, got=len(rows), expected=head.chunks)
    base, shared, tail_bytes = None, NOTHING_SHARED, 0
    if magic == MAGIC_DELTA:
        base, shared = _parse_tail(fd, size, raw[-_SUM:], where)
        tail_bytes = shared.size + _TAIL.size + _SUM
    envelope = Envelope.of(head, rows, base, shared)
    for k, row in enumerate(rows):
        if row.codec not in CODECS:
            raise CorruptError("unknown codec", where=where, got=row.codec, expected=", ".join(map(str, CODECS)))
        if CODECS[row.codec].delta and base is None:
            raise CorruptError("a delta without a base", where=where, got=CODECS[row.codec].name)
        if row.stored > envelope.chunk_bytes(k):
            raise CorruptError("a chunk takes more than it holds", where=where, got=f"{row.stored} bytes")
    end = envelope.end + tail_bytes
    if end != size:
        raise CorruptError(
            "truncated object" if size < end else "bytes after the object",
            where=where,
            got=f"{size} bytes",
            expected=end,
        )
    return envelope


def _parse_tail(fd: int, size: int, start: bytes, where: str) -> tuple[str, Shared]:
    """Base and shared bytes of an object whose start has this checksum."""
    body = os.pread(fd, _TAIL.size + _SUM, max(0, size - _TAIL.size - _SUM))
    if len(body) < _TAIL.size + _SUM or blake3(start + body[:-_SUM]).digest() != body[-_SUM:]:
        raise CorruptError("the end of the object is damaged", where=where)
    base, digest, shared = _TAIL.unpack(body[:-_SUM])
    if shared > MAX_SHARED:
        raise CorruptError("a delta shares too much", where=where, got=f"{shared} bytes", expected=MAX_SHARED)
    return base.hex(), Shared(digest, shared)


def _whole(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 63
