"""A store in another folder: on a mounted disk, say."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from ...errors import StoreError
from ..objects import Objects
from ..places import FOLDER, Places
from ..receiving import Advance, InFolder, Receiving
from ..refs import HEADS, TAGS, Refs
from ..writing import Writing
from .apart import Antechamber
from .remote import Move


class FolderRemote(InFolder):
    """A folder with a store; see `Remote`.

    Args:
        folder: the store's own folder, or the one that has it under `.cofuse`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        # As `Store.open` looks for one, and `Store.init` makes one.
        inside = folder if folder.name.endswith(FOLDER) else folder / FOLDER
        self._places = Places(folder if not (inside / "format").is_file() and (folder / "format").is_file() else inside)
        self._objects = Objects(self._places)
        self._refs = Refs(self._places)
        super().__init__(self._objects)

    def exists(self) -> bool:
        """See `Remote`."""
        from ..store import Store

        if not self._folder.is_dir() and not (self._folder.name.endswith(FOLDER) and self._folder.parent.is_dir()):
            raise StoreError(
                "no such folder", where=self._folder, hint="is its disk mounted? If it is new, make it first"
            )
        if not self._places.format.is_file():
            return False
        Store.open(self._folder)  # refuses another format
        return True

    def make(self, head: str) -> None:
        """See `Remote`."""
        from ..store import Store

        if not self.exists():
            Store.init(self._folder).refs.point_head(head)

    def refs(self) -> dict[str, str]:
        """See `Remote`."""
        return {under + name: commit for under in (HEADS, TAGS) for name, commit in self._refs.all(under).items()}

    def head(self) -> str:
        """See `Remote`."""
        return self._refs.head()

    def has(self, ids: Collection[str], *, threads: int) -> set[str]:
        """See `Remote`."""
        return {object_id for object_id in ids if object_id in self._objects}

    @contextlib.contextmanager
    def delivering(self) -> Iterator[_Delivery]:
        """See `Remote`."""
        with self._places.staged() as staging:
            yield _Delivery(self._objects, Writing(self._objects, staging), staging)

    def update(self, moves: Sequence[Move]) -> None:
        """See `Remote`."""
        for move in moves:
            self._refs.update(move.ref, move.new, expect=move.expect)


class _Delivery:
    """To push into a folder is to receive there."""

    def __init__(self, objects: Objects, pen: Writing, staging: Path) -> None:
        self._objects, self._pen, self._staging = objects, pen, staging

    def put(
        self, objects: Objects, ids: Collection[str], *, threads: int, sizes: Mapping[str, int], advance: Advance
    ) -> None:
        Receiving(self._objects, self._pen, self._staging, InFolder(objects)).receive(
            ids, threads=threads, sizes=sizes, advance=advance
        )

    def put_commits(self, objects: Objects, ids: Sequence[str], *, threads: int) -> None:
        # In any order, but let in in theirs: in a folder a commit that is there has its parents there.
        arriving = Antechamber(self._objects, self._pen, self._staging / "antechamber", InFolder(objects))
        arriving.receive(ids, threads)
        arriving.let_in(ids, threads)

    def rely_on(self, ids: Iterable[str]) -> None:
        for object_id in ids:
            self._pen.rely_on(object_id)

    def sync(self) -> None:
        self._pen.sync()
