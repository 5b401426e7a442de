"""Objects that come from another store: taken as they are kept there, and verified whole before they get their name.

A large object that a kill, or a lost network, has cut short goes on where it was: its bytes stay under `arriving/`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Protocol

from ..checkpoint import for_each, map_each
from ..errors import CorruptError, StoreError
from .envelope import parse
from .objects import MAX_CHAIN, Objects, Opened
from .places import explained, make_folder
from .writing import Writing

PIECE = 8 * 1024 * 1024  # bytes that are asked for at a time
LARGE = 64 * 1024 * 1024  # from here on an object's bytes outlive a kill
_AT_ONCE = 4  # pieces of one object in memory: each takes its bytes twice for a moment
_MAX_FILE = 1 << 43  # an object's file: its chunks are 4 TiB at most

Advance = Callable[[float], None]


class ObjectFile(Protocol):
    """The file of one object, as it is kept in another store; nothing it says has been verified."""

    @property
    def size(self) -> int:
        """Bytes of the file."""

    def read(self, start: int, stop: int) -> bytes:
        """Bytes of the file; fewer where it ends."""


class Source(Protocol):
    """Where objects come from."""

    @property
    def name(self) -> str:
        """What errors call it."""

    def open(self, object_id: str) -> AbstractContextManager[ObjectFile]:
        """Open an object's file.

        Raises:
            CorruptError: it is missing there.
            StoreError: the source cannot be read.
        """


class InFolder:
    """The objects of a folder as a source."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self.name = str(objects.places.root)

    @contextlib.contextmanager
    def open(self, object_id: str) -> Iterator[ObjectFile]:
        """See `Source`."""
        path = self._objects.path(object_id)
        try:
            file = open(path, "rb", buffering=0)  # noqa: SIM115 - closed below
        except FileNotFoundError:
            raise CorruptError("object is missing", where=self.name, got=object_id) from None
        except OSError as error:
            raise StoreError("cannot read an object", where=path, got=error.strerror) from None
        with file:
            yield OnDisk(path, file.fileno())


@dataclass(frozen=True, slots=True)
class OnDisk:
    """An object's file that is open."""

    path: Path
    fd: int

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return os.fstat(self.fd).st_size

    def read(self, start: int, stop: int) -> bytes:
        """Bytes of the file; fewer where it ends."""
        try:
            return os.pread(self.fd, stop - start, start)
        except OSError as error:
            raise CorruptError("cannot read an object", where=self.path, got=error.strerror) from None


class Receiving:
    """Takes objects from one source into a folder.

    Args:
        objects: what is there already, and where arrivals are looked for when a delta needs its base.
        pen: the writer through which they last.
        folder: the writer's own, for what is unfinished.
        source: where they come from.
        lasting: whether an object's bytes are on the disk when it gets its name; else the caller sees to it.
    """

    def __init__(self, objects: Objects, pen: Writing, folder: Path, source: Source, *, lasting: bool = True) -> None:
        self._lasting = lasting
        self._objects = objects
        self._pen = pen
        self._folder = folder
        self._source = source
        self._numbers = count()
        self._guard = threading.Lock()
        self._large: list[str] = []
        self._waiting: dict[str, tuple[Path, str]] = {}  # deltas that are here before their base: file, base

    def receive(
        self,
        ids: Iterable[str],
        *,
        limit: int = _MAX_FILE,
        threads: int = 1,
        sizes: Mapping[str, int] | None = None,
        advance: Advance = lambda _: None,
    ) -> None:
        """Take objects, and what they are deltas against; those that are here are left as they are.

        Args:
            ids: what is wanted.
            limit: bytes that one of their files may have.
            threads: how many.
            sizes: bytes that an object counts for in what `advance` is told.
            advance: told of what has arrived.

        Raises:
            CorruptError: an object is missing there, or is not what its id says. What arrived before stays.
            StoreError: the source cannot be read, or the store cannot be written.
        """
        wanted = dict.fromkeys(object_id for object_id in ids if object_id not in self._objects)
        counted = sizes or {}

        def take(object_id: str, inner: int = 1) -> None:
            weight = counted.get(object_id, 0)
            self._take(object_id, limit, inner, lambda share: advance(share * weight))

        # What a delta is against is known when the delta is here. Each round is one step along the chains.
        for _ in range(MAX_CHAIN + 1):
            for_each(take, wanted, min(threads, len(wanted)))
            large, self._large = self._large, []
            for object_id in large:  # one after another, each with all threads
                take(object_id, max(2, threads))
            here = set(self._waiting)
            wanted = dict.fromkeys(
                base for _, base in self._waiting.values() if base not in here and base not in self._objects
            )
            if not wanted:
                break
        self._name_those_that_waited(threads)

    def adopt(self, object_id: str, path: Path) -> bool:
        """Take an object whose file has arrived by itself, in a folder of the same file system; whether it is new here.

        Raises:
            CorruptError: it is not what its id says, or what it is a delta against is not here.
        """
        with self._explained(object_id), explained(path), open(path, "rb") as file:
            if self._verify_and_name(object_id, path, file.fileno()):
                _, base = self._waiting.pop(object_id)
                raise CorruptError("what it is a delta against is missing", got=base)
            return os.stat(self._objects.path(object_id)).st_ino == os.fstat(file.fileno()).st_ino

    def _name_those_that_waited(self, threads: int) -> None:
        while self._waiting:
            ready = [i for i, (_, base) in self._waiting.items() if base in self._objects]
            if not ready:
                raise CorruptError(
                    "objects are deltas against each other", where=self._source.name, got=next(iter(self._waiting))
                )

            def name(object_id: str) -> None:
                path, _ = self._waiting[object_id]
                with self._explained(object_id), open(path, "rb") as file:
                    self._verify_and_name(object_id, path, file.fileno())
                path.unlink(missing_ok=True)

            for_each(name, ready, threads)
            for object_id in ready:
                del self._waiting[object_id]

    def _take(self, object_id: str, limit: int, inner: int, advance: Advance) -> None:
        """Take one object; a large one only when it is asked for with more than one thread of its own."""
        with self._explained(object_id), self._source.open(object_id) as file:
            if file.size > limit:
                raise CorruptError("too large", got=f"{file.size} bytes", expected=f"at most {limit}")
            if file.size <= LARGE:
                self._take_small(object_id, file, advance)
            elif inner == 1:
                with self._guard:
                    self._large.append(object_id)
            else:
                self._take_large(object_id, file, inner, advance)

    def _take_small(self, object_id: str, file: ObjectFile, advance: Advance) -> None:
        path = self._folder / str(next(self._numbers))
        with explained(path), open(path, "xb+") as draft:
            _append(file, draft.fileno(), 0, 1, advance)
            waits = self._verify_and_name(object_id, path, draft.fileno())
        if not waits:
            path.unlink(missing_ok=True)

    def _take_large(self, object_id: str, file: ObjectFile, threads: int, advance: Advance) -> None:
        path = self._pen.root / "arriving" / object_id
        with explained(path), _unfinished(path) as fd:
            if object_id in self._objects:  # by another writer, while this one waited
                advance(1)
                return
            had = os.fstat(fd).st_size
            if had > file.size:
                os.ftruncate(fd, had := 0)
            advance(had / file.size)
            try:
                _append(file, fd, had, threads, advance)
                try:
                    waits = self._verify_and_name(object_id, path, fd)
                except CorruptError:
                    if not had:
                        raise
                    # What was left here was of a file kept differently, or had not reached the disk: all of it anew.
                    os.ftruncate(fd, 0)
                    _append(file, fd, 0, threads, lambda _: None)
                    waits = self._verify_and_name(object_id, path, fd)
            except CorruptError:
                path.unlink(missing_ok=True)
                raise
            if not waits:
                path.unlink(missing_ok=True)

    def _verify_and_name(self, object_id: str, path: Path, fd: int) -> bool:
        """Whether it has to wait for its base; else every chunk has been verified and it has its name."""
        envelope = parse(fd, object_id)
        if envelope.id != object_id:
            raise CorruptError("object is not what its id says", got=envelope.id, expected=object_id)
        if envelope.base is not None and not self._pen.keep(envelope.base):
            with self._guard:
                self._waiting[object_id] = path, envelope.base
            return True
        arrived = Opened(self._objects, object_id, fd, path, envelope)
        for k in range(envelope.head.chunks):
            arrived.chunk(k)
        os.fchmod(fd, 0o444)
        os.utime(fd)  # `gc` spares what is young, and what has been continued may be old
        if self._lasting:
            os.fsync(fd)
        name = self._objects.path(object_id)
        make_folder(name.parent)
        try:
            os.link(path, name)
        except FileExistsError:
            pass  # another writer was faster, with the same object
        except OSError:
            os.rename(path, name)  # a file system without hard links
        self._pen.rely_on(object_id)
        return False

    @contextlib.contextmanager
    def _explained(self, object_id: str) -> Iterator[None]:
        try:
            yield
        except CorruptError as error:
            raise CorruptError(
                "an object of the other store is damaged",
                where=f"{self._source.name}: {object_id}",
                got=error.line,
                hint="nothing of it was taken; mend it there, or put it there again from a store that has it whole",
            ) from None


@contextlib.contextmanager
def _unfinished(path: Path) -> Iterator[int]:
    """Open what an earlier attempt has left of an object, or begin it; one writer at a time."""
    make_folder(path.parent)
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            if path.exists() and os.stat(path).st_ino == os.fstat(fd).st_ino:
                yield fd
                return
            # Another writer has finished it, or given it up, meanwhile.
        finally:
            os.close(fd)


def _append(file: ObjectFile, fd: int, at: int, threads: int, advance: Advance) -> None:
    """Bring `fd`, which has the first `at` bytes of a file, to its end."""
    size = file.size
    while at < size:
        starts = range(at, min(size, at + min(threads, _AT_ONCE) * PIECE), PIECE)
        for piece in map_each(lambda start: file.read(start, min(size, start + PIECE)), starts, threads):
            if len(piece) != min(PIECE, size - at):
                raise CorruptError("truncated object", got=f"{at + len(piece)} bytes", expected=size)
            with explained("arriving"):
                view = memoryview(piece)
                while view:
                    done = os.pwrite(fd, view, at)
                    view, at = view[done:], at + done
            advance(len(piece) / size)
