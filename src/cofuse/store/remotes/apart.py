"""Objects of a store seen with some of them elsewhere: what has just arrived, or what is sent in another form."""

from __future__ import annotations

import os
import threading
from collections.abc import Collection
from pathlib import Path

from ...checkpoint import for_each
from ...errors import CorruptError
from ..choosing import coded
from ..draft import Draft
from ..envelope import Envelope, Row
from ..objects import Objects
from ..places import Places, explained, make_folder
from ..receiving import Receiving, Source
from ..trees import MAX_TREE
from ..writing import Writing


class Antechamber(Objects):
    """Commits, trees and headers that have arrived before what they need: not in the store yet, and read as if they were.

    Args:
        objects: the store's.
        pen: through which they last once they are let in.
        folder: the writer's own.
        source: where they come from.
    """

    def __init__(self, objects: Objects, pen: Writing, folder: Path, source: Source) -> None:
        super().__init__(Places(folder))
        self._behind = objects
        self._pen = pen
        make_folder(self.places.objects)
        self._receiving = Receiving(self, Writing(self, folder), folder, source, lasting=False)

    def path(self, object_id: str) -> Path:
        """Where it is: in the store, or else here."""
        inside = self._behind.path(object_id)
        return inside if inside.is_file() else super().path(object_id)

    def receive(self, ids: Collection[str], threads: int) -> None:
        """Take objects that are small by what they are."""
        self._receiving.receive(ids, limit=MAX_TREE, threads=threads)

    def let_in(self, ids: Collection[str], threads: int) -> None:
        """Give objects their place in the store, in this order, but each after what it is a delta against."""
        order = dict.fromkeys(i for wanted in ids for i in (*reversed(self.bases(wanted)), wanted))
        outside = {i: super(Antechamber, self).path(i) for i in order if i not in self._behind}
        # All together, because a file system writes what waits at one time at once.
        for_each(_sync, outside.values(), min(threads, len(outside)))
        for object_id in order:
            if object_id in outside:
                inside = self._behind.path(object_id)
                with explained(inside):
                    make_folder(inside.parent)
                    os.rename(outside[object_id], inside)
            self._pen.rely_on(object_id)


class Outfit(Objects):
    """Objects as they are sent: those that are deltas against what the other side is not to have are made whole.

    A push sends what was pushed and nothing else. An older version may be kept as a delta against a newer one that
    nobody has pushed, which would be sent along with it.

    Args:
        objects: the store's.
        folder: the writer's own, for the files that are made.
        whole: ids that are sent whole.
    """

    def __init__(self, objects: Objects, folder: Path, whole: Collection[str]) -> None:
        super().__init__(objects.places)
        self._behind = objects
        self._folder = folder
        self._whole = frozenset(whole)
        self._making = threading.Lock()

    def path(self, object_id: str) -> Path:
        """Where its file is; one that is sent whole is made when it is first asked for."""
        if object_id not in self._whole:
            return super().path(object_id)
        made = self._folder / "whole" / object_id
        with self._making:
            if not made.is_file():
                with explained(made):
                    made.parent.mkdir(exist_ok=True)
                self._make(object_id, made)
        return made

    def _make(self, object_id: str, path: Path) -> None:
        rows: list[Row] = []
        with self._behind.opened(object_id) as found, Draft(path.with_suffix(".draft"), found.envelope.head) as draft:
            head = found.envelope.head
            for k in range(head.chunks):
                data = found.chunk(k)
                row, stored = coded(head, None, (k, data, None))
                draft.append(stored)
                rows.append(row)
            envelope = Envelope.of(head, rows)
            if envelope.id != object_id:
                raise CorruptError("object is not what its id says", where=path, got=envelope.id)
            draft.publish(envelope, path)


def _sync(path: Path) -> None:
    with explained(path), open(path, "rb") as file:
        os.fsync(file.fileno())
