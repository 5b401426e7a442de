"""Objects in a folder, each under the id of what it is; every read is verified."""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from ..checkpoint import CHUNK, keep_freed_memory
from ..errors import CorruptError, StoreError
from .codecs import CODECS, NOTHING, Beside, Bytes
from .envelope import Envelope, check_of, parse
from .leases import Leases
from .places import Places

ID = re.compile(r"[0-9a-f]{64}")
MAX_CHAIN = 64  # deltas that a reader follows; writers stop far below
_REMEMBERED = 4096  # envelopes


@dataclass(frozen=True, slots=True)
class Opened:
    """An object whose envelope has been read and verified, open for its chunks."""

    objects: Objects
    id: str
    fd: int
    path: Path
    envelope: Envelope
    level: int = 0  # how many deltas have led here

    def stored(self, k: int) -> bytes:
        """Chunk `k` as it is kept; nothing is verified."""
        return self._pread(self.envelope.rows[k].stored, self.envelope.offsets[k], f"chunk {k}")

    def shared(self) -> bytes:
        """What all chunks of a delta share.

        Raises:
            CorruptError: it does not give its digest.
        """
        digest, size = self.envelope.shared
        data = self._pread(size, self.envelope.end, "what its chunks share") if size else b""
        if blake3(data).digest() != digest:
            raise CorruptError("what the chunks of a delta share is damaged", where=self.path)
        return data

    def chunk(self, k: int, *, every_bit: bool = False) -> Bytes:
        """The bytes of chunk `k`, verified by their digest.

        Args:
            k: its number.
            every_bit: verify too how it is kept: a frame has bits that mean nothing.

        Raises:
            CorruptError: they do not give their digest, or what they are a delta against cannot be read.
        """
        return self._twice(lambda found: found._verified(k, every_bit))

    def decoded(self, k: int) -> Bytes:
        """The bytes of chunk `k`, not verified: for what is a delta against them, whose own digest tells."""
        return self._twice(lambda found: found._decoded(k))

    def _twice(self, read: Callable[[Opened], Bytes]) -> Bytes:
        try:
            return read(self)
        except CorruptError:
            if not self._replaced():
                raise
        # It has been kept differently meanwhile, and what it was a delta against may be gone.
        with self.objects.opened(self.id, level=self.level) as again:
            return read(again)

    def _verified(self, k: int, every_bit: bool) -> Bytes:
        row, where = self.envelope.rows[k], f"{self.path}: chunk {k}"
        if every_bit and check_of(row.codec, self.stored(k)) != row.check:
            raise CorruptError("a chunk is damaged", where=where, got="what is kept is not what was written")
        data = self._decoded(k)
        got = blake3(data)
        if got.digest() != row.digest:
            self._blame(k)
            raise CorruptError("a chunk is damaged", where=where, got=got.hexdigest(), expected=row.digest.hex())
        return data

    def _decoded(self, k: int) -> Bytes:
        codec, size, width = CODECS[self.envelope.rows[k].codec], self.envelope.chunk_bytes(k), self.envelope.head.width
        beside = self._beside(k) if codec.delta else NOTHING
        try:
            if codec.elements and size % width:
                raise ValueError(f"{codec.name} of a part of an element")
            return codec.decode(self.stored(k), size, width, beside)
        except ValueError as error:
            if codec.delta:
                self._blame(k)
            raise CorruptError("a chunk is damaged", where=f"{self.path}: chunk {k}", got=error) from None

    def _beside(self, k: int) -> Beside:
        with self._base() as found:
            data = fitted(found, k, self.envelope.chunk_bytes(k), found.decoded)
            return Beside(data, k * CHUNK, self.shared(), self.envelope.head.spec)

    def _blame(self, k: int) -> None:
        """Raise what is wrong with the base's chunk, if it is the base's fault."""
        if CODECS[self.envelope.rows[k].codec].delta:
            with self._base() as found:
                fitted(found, k, self.envelope.chunk_bytes(k), found.chunk)

    @contextlib.contextmanager
    def _base(self) -> Iterator[Opened]:
        base = self.envelope.base
        if base is None:
            raise CorruptError("a delta without a base", where=self.path)
        if self.level >= MAX_CHAIN:
            raise CorruptError("a chain of deltas is too long, or a circle", where=self.path, expected=MAX_CHAIN)
        with self.objects.opened(base, self.envelope.head.kind, level=self.level + 1) as found:
            yield found

    def _pread(self, size: int, at: int, what: str) -> bytes:
        try:
            return os.pread(self.fd, size, at)
        except OSError as error:
            raise CorruptError("cannot read an object", where=f"{self.path}: {what}", got=error.strerror) from None

    def _replaced(self) -> bool:
        try:
            return os.stat(self.path).st_ino != os.fstat(self.fd).st_ino
        except OSError:
            return False


def fitted(base: Opened, k: int, size: int, read: Callable[[int], Bytes]) -> Bytes:
    """Chunk `k` of a base, cut or filled with zeros to `size` bytes, so that a resized vocabulary still gains."""
    data = read(k) if k < base.envelope.head.chunks else b""
    if len(data) == size:
        return data
    return memoryview(data)[:size] if len(data) > size else bytes(data) + bytes(size - len(data))


class Objects:
    """The objects of a store, to read; `writing.Writing` adds to them.

    Args:
        places: the store's paths.
    """

    def __init__(self, places: Places) -> None:
        keep_freed_memory()
        self.places = places
        self.leases = Leases(places)
        self._envelopes: OrderedDict[str, tuple[tuple[int, int, int], Envelope]] = OrderedDict()
        self._guard = threading.Lock()

    def path(self, object_id: str) -> Path:
        """Where an object is kept, there or not.

        Raises:
            StoreError: that is no id, so it must not become a path.
        """
        if not ID.fullmatch(object_id):
            raise StoreError(
                "not an object id", where=self.places.root, got=ascii(object_id[:80]), expected="64 hex digits"
            )
        return self.places.objects / object_id[:2] / object_id[2:]

    def __contains__(self, object_id: str) -> bool:
        return self.path(object_id).is_file()

    def __iter__(self) -> Iterator[str]:
        for folder in sorted(self.places.objects.iterdir()):
            yield from self.starting_with(folder.name)

    def starting_with(self, prefix: str) -> Iterator[str]:
        """Ids with a prefix of at least two digits, in order."""
        folder = self.places.objects / prefix[:2]
        if folder.is_dir():
            for path in sorted(folder.iterdir()):
                if path.name.startswith(prefix[2:]) and ID.fullmatch(folder.name + path.name):
                    yield folder.name + path.name

    @contextlib.contextmanager
    def opened(self, object_id: str, kind: str | None = None, *, level: int = 0) -> Iterator[Opened]:
        """Open an object and verify its envelope.

        Raises:
            CorruptError: it is missing, damaged, not of `kind`, or another object under this id.
        """
        path = self.path(object_id)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise CorruptError("object is missing", where=self.places.root, got=object_id) from None
        except OSError as error:
            raise StoreError("cannot read an object", where=path, got=error.strerror) from None
        try:
            envelope = self._verified(fd, object_id, path)
            if kind is not None and envelope.head.kind != kind:
                raise CorruptError("an object of another kind", where=path, got=envelope.head.kind, expected=kind)
            yield Opened(self, object_id, fd, path, envelope, level)
        finally:
            os.close(fd)

    def envelope(self, object_id: str, kind: str | None = None) -> Envelope:
        """What an object is, without its bytes; raises as `opened` does."""
        with self.opened(object_id, kind) as found:
            return found.envelope

    def bases(self, object_id: str) -> tuple[str, ...]:
        """The objects that an object is a delta against, the nearest first; none for one that is kept whole.

        Raises:
            CorruptError: one of them is missing or damaged, or they are too many or a circle.
        """
        found: list[str] = []
        base = self.envelope(object_id).base
        while base is not None:
            if len(found) >= MAX_CHAIN:
                raise CorruptError(
                    "a chain of deltas is too long, or a circle", where=self.path(object_id), expected=MAX_CHAIN
                )
            found.append(base)
            base = self.envelope(base).base
        return tuple(found)

    def read(self, object_id: str, start: int = 0, stop: int | None = None, *, kind: str | None = None) -> bytearray:
        """Bytes `start` to `stop` of an object; reads, and verifies, only the chunks that hold them.

        Raises:
            CorruptError: see `opened`; also a chunk that does not give its digest.
            StoreError: the range lies outside the object.
        """
        with self.opened(object_id, kind) as found:
            size = found.envelope.head.size
            end = size if stop is None else stop
            if not 0 <= start <= end <= size:
                raise StoreError(
                    "range outside the object", where=object_id, got=f"{start} to {end}", expected=f"0 to {size}"
                )
            out = bytearray(end - start)
            for k in range(start // CHUNK, -(-end // CHUNK)):
                chunk, at = found.chunk(k), k * CHUNK
                first, last = max(start, at), min(end, at + len(chunk))
                out[first - start : last - start] = memoryview(chunk)[first - at : last - at]
            return out

    def stored_bytes(self, object_id: str) -> int:
        """Bytes that an object takes on disk."""
        return self.path(object_id).stat().st_size

    def _verified(self, fd: int, object_id: str, path: Path) -> Envelope:
        # An envelope is checked once for as long as its file stays the same; chunks are checked at every read.
        status = os.fstat(fd)
        stamp = (status.st_ino, status.st_size, status.st_mtime_ns)
        with self._guard:
            known = self._envelopes.get(object_id)
        if known is not None and known[0] == stamp:
            return known[1]
        envelope = parse(fd, str(path))
        if envelope.id != object_id:
            raise CorruptError("object is not what its id says", where=path, got=envelope.id, expected=object_id)
        with self._guard:
            self._envelopes[object_id] = stamp, envelope
            while len(self._envelopes) > _REMEMBERED:
                self._envelopes.popitem(last=False)
        return envelope
