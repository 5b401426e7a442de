"""Putting objects: temporary name, fsync, link; nothing that is there is ever written again."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, count
from pathlib import Path

from blake3 import blake3

from ..checkpoint import CHUNK, for_each, sync_folder
from ..errors import CorruptError, StoreError
from .choosing import MAX_DEPTH, Against, Piece, best, coded, kept
from .codecs import SAME, Bytes
from .draft import Draft
from .envelope import Envelope, Head, Row
from .objects import Objects
from .places import explained
from .workers import Workers

_SYNCING = 8  # folders at a time


@contextlib.contextmanager
def writing(objects: Objects, threads: int | None = None) -> Iterator[Writing]:
    """Put objects into a store; what was put lasts from `Writing.sync` on."""
    with objects.places.staged() as folder:
        pen = Writing(objects, folder, threads)
        try:
            yield pen
        finally:
            pen.close()


class Writing:
    """One writer; any number of threads may put through it.

    A kill leaves only whole objects under `objects/`: each is written under a temporary name, synced, and only then
    linked to its id. Memory is a few chunks a thread.

    Args:
        objects: what is written to.
        folder: the writer's own, for what is unfinished.
        threads: how many hash and encode the chunks of objects of several; the processor's number when None.
    """

    def __init__(self, objects: Objects, folder: Path, threads: int | None = None) -> None:
        self._objects = objects
        self._folder = folder
        self._workers = Workers(threads or os.cpu_count() or 1)
        self._numbers = count()
        self._touched: set[Path] = set()

    @property
    def root(self) -> Path:
        """The folder of the store that is written to."""
        return self._objects.places.root

    def put(
        self, head: Head, chunks: Iterable[Bytes], *, like: str | Sequence[str] | None = None, where: object = None
    ) -> str:
        """Keep an object and give its id.

        Args:
            head: what it is.
            chunks: its bytes, in pieces of exactly 4 MiB but for the last; a piece that was given is not written to.
            like: objects that it may well equal or resemble (the same tensor in the parents, the first parent's first):
                while its chunks are those of the first, nothing is encoded or written; where it takes fewer bytes it is
                kept as a delta against one of them.
            where: what errors call it.

        Raises:
            StoreError: it cannot be written, or `chunks` are not what `head` says.
        """
        pieces = _checked(chunks, head, where)
        if head.chunks == 1:
            for k, data, _ in pieces:
                digest = blake3(data).digest()
                if self.keep(known := head.id([digest])):
                    return known
                pieces = chain([(k, data, digest)], pieces)
                break
        with self.draft(head) as draft:
            envelope, shared = self.fill(draft, head, pieces, [like] if isinstance(like, str) else like or ())
            if not self.keep(envelope.id):
                draft.publish(envelope, self._objects.path(envelope.id), shared)
                self.rely_on(envelope.id)  # it may be another writer's
            return envelope.id

    def draft(self, head: Head) -> Draft:
        """An object's file under a temporary name."""
        return Draft(self._folder / str(next(self._numbers)), head)

    def fill(
        self, draft: Draft, head: Head, pieces: Iterator[Piece], like: Sequence[str], bound: int = MAX_DEPTH
    ) -> tuple[Envelope, bytes]:
        """Write an object's chunks into its draft; gives its envelope, and what its chunks share.

        Args:
            draft: the file.
            head: what the object is.
            pieces: its chunks.
            like: see `put`.
            bound: deltas that may follow one another.
        """
        first = self._against(like, head)
        rows: list[Row] = []
        against = first
        # One after another until the first chunk that is new, so that the choice does not depend on the threads.
        for k, data, known in pieces if like else ():
            digest = known or blake3(data).digest()
            if first is None or not first.has(k, digest):
                against = self._relied(best(self._objects, like, head, k, data, bound))
                pieces = chain([(k, data, digest)], pieces)
                break
            rows.append(Row.of(digest, SAME, b""))
        else:
            if first is not None and first.depth > bound:
                against = None
        if first is not None and against is not first and (against is None or against.base != first.base):
            pieces, rows = chain(first.pieces(len(rows)), pieces), []
        for row, stored in self._workers.in_order(partial(coded, head, against), pieces):
            draft.append(stored)
            rows.append(row)
        return kept(head, rows, against)

    def close(self) -> None:
        """End the threads."""
        self._workers.close()

    def put_bytes(self, head: Head, data: bytes, *, like: str | Sequence[str] | None = None) -> str:
        """`put` of bytes in memory."""
        return self.put(head, (memoryview(data)[a : a + CHUNK] for a in range(0, len(data), CHUNK)), like=like)

    def rely_on(self, object_id: str) -> None:
        """Make an object that is there already last too, with all that it needs: `gc` leaves it.

        Raises:
            CorruptError: it is missing.
        """
        if not self.keep(object_id):
            raise CorruptError("object is missing", where=self._objects.places.root, got=object_id)

    def sync(self) -> None:
        """Return once all objects put so far would survive a power cut."""
        # Folders of objects that were there already are synced too: whoever linked them may not have got that far.
        with explained(self._objects.places.root):
            folders, self._touched = sorted(self._touched), set()
            # Together, because a file system writes what waits at one time at once.
            for_each(sync_folder, folders, min(_SYNCING, len(folders)))
            sync_folder(self._objects.places.objects)

    def keep(self, object_id: str) -> bool:
        """Rely on an object as `rely_on` does, if it is there; whether it is."""
        path = self._objects.path(object_id)
        there = self._objects.places.touch(path)
        if there:
            self._touched.add(path.parent)
        return there

    def _against(self, like: Sequence[str], head: Head) -> Against | None:
        """The first of the objects that a new one may equal."""
        with contextlib.suppress(StoreError):  # a damaged guess is no reason not to keep good bytes
            return self._relied(Against(self._objects, like[0], head)) if like else None
        return None

    def _relied(self, against: Against | None) -> Against | None:
        return against if against is not None and self.keep(against.base) else None


def _checked(chunks: Iterable[Bytes], head: Head, where: object) -> Iterator[Piece]:
    """The chunks, numbered, if they are those that a head says."""
    count = size = 0
    for count, chunk in enumerate(chunks, 1):
        size += len(chunk)
        if size != min(count * CHUNK, head.size) or count > head.chunks:
            break
        yield count - 1, chunk, None
    if (count, size) != (head.chunks, head.size):
        raise StoreError(
            "the source gave another number of bytes than it said",
            where=where,
            got=f"{size} bytes or more" if count else "none",
            expected=f"{head.size} bytes, {head.chunks} chunks",
            hint="was it changed while it was being read?",
        )
