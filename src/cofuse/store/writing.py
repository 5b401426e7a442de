"""Putting objects: temporary name, fsync, link; nothing that is there is ever written again."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from itertools import count
from pathlib import Path

from blake3 import blake3

from ..checkpoint import CHUNK, for_each, sync_folder
from ..errors import CorruptError, StoreError
from .codecs import Bytes, smallest
from .envelope import Envelope, Head, Row, length
from .objects import Objects
from .places import explained

_SYNCING = 8  # folders at a time


@contextlib.contextmanager
def writing(objects: Objects) -> Iterator[Writing]:
    """Put objects into a store; what was put lasts from `Writing.sync` on."""
    with objects.places.staged() as folder:
        yield Writing(objects, folder)


class Writing:
    """One writer; any number of threads may put through it.

    A kill leaves only whole objects under `objects/`: each is written under a temporary name, synced, and only then
    linked to its id. Memory is a few chunks a thread.
    """

    def __init__(self, objects: Objects, folder: Path) -> None:
        self._objects = objects
        self._folder = folder
        self._numbers = count()
        self._touched: set[Path] = set()

    @property
    def root(self) -> Path:
        """The folder of the store that is written to."""
        return self._objects.places.root

    def put(self, head: Head, chunks: Iterable[Bytes], *, like: str | None = None, where: object = None) -> str:
        """Keep an object and give its id.

        Args:
            head: what it is.
            chunks: its bytes, in pieces of exactly 4 MiB but for the last.
            like: an object that it may well equal (the same tensor one commit earlier): as long as their chunks agree,
                nothing is compressed or written.
            where: what errors call it.

        Raises:
            StoreError: it cannot be written, or `chunks` are not what `head` says.
        """
        twin = self._twin(like, head)
        rows: list[Row] = []
        with _Draft(self._folder / str(next(self._numbers)), head) as draft:
            for k, chunk in enumerate(chunks):
                if len(chunk) != min(CHUNK, head.size - k * CHUNK):
                    raise _uneven(where, f"{k * CHUNK + len(chunk)} bytes", head)
                digest = blake3(chunk).digest()
                if head.chunks == 1 and (known := head.id([digest])) in self._objects:
                    return self._touch(known)
                if draft.closed and twin is not None and twin[1].rows[k].digest == digest:
                    rows.append(twin[1].rows[k])
                    continue
                if draft.closed and twin is not None:
                    self._copy(twin[0], len(rows), draft)
                codec, stored = smallest(chunk, head.width)
                draft.append(stored)
                rows.append(Row(digest, codec, len(stored)))
            if len(rows) != head.chunks:
                raise _uneven(where, f"{len(rows)} chunks", head)
            envelope = Envelope.of(head, rows)
            object_id = envelope.id
            if object_id not in self._objects:
                draft.publish(envelope, self._objects.path(object_id))
            return self._touch(object_id)

    def put_bytes(self, head: Head, data: bytes) -> str:
        """`put` of bytes in memory."""
        return self.put(head, (memoryview(data)[a : a + CHUNK] for a in range(0, len(data), CHUNK)))

    def rely_on(self, object_id: str) -> None:
        """Make an object that is there already last too.

        Raises:
            CorruptError: it is missing.
        """
        if object_id not in self._objects:
            raise CorruptError("object is missing", where=self._objects.places.root, got=object_id)
        self._touch(object_id)

    def sync(self) -> None:
        """Return once all objects put so far would survive a power cut."""
        # Folders of objects that were there already are synced too: whoever linked them may not have got that far.
        with explained(self._objects.places.root):
            folders, self._touched = sorted(self._touched), set()
            # Together, because a file system writes what waits at one time at once.
            for_each(sync_folder, folders, min(_SYNCING, len(folders)))
            sync_folder(self._objects.places.objects)

    def _touch(self, object_id: str) -> str:
        self._touched.add(self._objects.path(object_id).parent)
        return object_id

    def _twin(self, like: str | None, head: Head) -> tuple[str, Envelope] | None:
        if like is None:
            return None
        try:
            envelope = self._objects.envelope(like)
        except StoreError:
            return None  # a damaged guess is no reason not to keep good bytes
        return (like, envelope) if envelope.head == head else None

    def _copy(self, twin: str, chunks: int, draft: _Draft) -> None:
        """Take the first chunks, which turned out equal, as the twin keeps them."""
        with self._objects.opened(twin) as source:
            for k in range(chunks):
                source.chunk(k)  # verified, so that damage is not handed on
                draft.append(source.stored(k))


def _uneven(where: object, got: str, head: Head) -> StoreError:
    return StoreError(
        "the source gave another number of bytes than it said",
        where=where,
        got=got,
        expected=f"{head.size} bytes, {head.chunks} chunks",
        hint="was it changed while it was being read?",
    )


class _Draft:
    """An object under its temporary name; the file is made when the first byte must be written."""

    def __init__(self, path: Path, head: Head) -> None:
        self._path = path
        self._at = length(head)
        self._fd = -1

    def __enter__(self) -> _Draft:
        return self

    @property
    def closed(self) -> bool:
        return self._fd < 0

    def append(self, stored: bytes) -> None:
        self._write(stored, self._at)
        self._at += len(stored)

    def publish(self, envelope: Envelope, path: Path) -> None:
        """Complete the file, sync it, and link it to its id."""
        self._write(envelope.encode(), 0)
        with explained(path):
            os.fsync(self._fd)
            with contextlib.suppress(FileExistsError):
                path.parent.mkdir()
            try:
                os.link(self._path, path)
            except FileExistsError:
                pass  # another writer was faster, with the same object
            except OSError:
                os.rename(self._path, path)  # a file system without hard links

    def _write(self, data: bytes, at: int) -> None:
        view = memoryview(data)
        with explained(self._path):
            if self.closed:
                self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444)
            while view:
                done = os.pwrite(self._fd, view, at)
                view, at = view[done:], at + done

    def __exit__(self, *_: object) -> None:
        if not self.closed:
            os.close(self._fd)
            self._path.unlink(missing_ok=True)
