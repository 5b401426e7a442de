"""What stands at the start of an object's file: what the object is, and where each of its chunks lies.

    magic, lengths | head (JSON) | one row a chunk: BLAKE3 of its bytes, codec, stored length | BLAKE3 of all that
    ... then the chunks, one after another, to the end of the file.

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
MAX_HEAD = 4096
MAX_CHUNKS = 1 << 20  # 4 TiB
_START = struct.Struct("<8sII")  # magic, bytes of head, number of chunks
_ROW = struct.Struct("<32sB3xI")  # digest, codec, bytes stored
_SUM = 32


class Row(NamedTuple):
    """One chunk: the BLAKE3 of its bytes, the codec it is kept with, and how many bytes that takes."""

    digest: bytes
    codec: int
    stored: int


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
        return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()

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


@dataclass(frozen=True, slots=True)
class Envelope:
    """A head and the rows of its chunks."""

    head: Head
    rows: Sequence[Row]
    offsets: Sequence[int]  # in the file: where each chunk starts

    @classmethod
    def of(cls, head: Head, rows: Sequence[Row]) -> Envelope:
        """With offsets worked out."""
        at = length(head)
        offsets = []
        for row in rows:
            offsets.append(at)
            at += row.stored
        return cls(head, rows, offsets)

    @property
    def id(self) -> str:
        """The id that the object has by what its envelope says."""
        return self.head.id(row.digest for row in self.rows)

    def chunk_bytes(self, k: int) -> int:
        """Bytes of chunk `k` as they are handed out."""
        return min(CHUNK, self.head.size - k * CHUNK)

    def encode(self) -> bytes:
        """The bytes that stand at the start of the object's file."""
        head = self.head.encode()
        body = _START.pack(MAGIC, len(head), len(self.rows)) + head + b"".join(_ROW.pack(*row) for row in self.rows)
        return body + blake3(body).digest()


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
    if magic != MAGIC:
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
    envelope = Envelope.of(head, rows)
    for k, row in enumerate(rows):
        if row.codec not in CODECS:
            raise CorruptError("unknown codec", where=where, got=row.codec, expected=", ".join(map(str, CODECS)))
        if row.stored > envelope.chunk_bytes(k):
            raise CorruptError("a chunk takes more than it holds", where=where, got=f"{row.stored} bytes")
    end = whole + sum(row.stored for row in rows)
    if end != size:
        raise CorruptError(
            "truncated object" if size < end else "bytes after the object",
            where=where,
            got=f"{size} bytes",
            expected=end,
        )
    return envelope


def _whole(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 63
