"""What another store must be able to do, wherever it is."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

from ..objects import Objects
from ..receiving import Advance, Source


class Move(NamedTuple):
    """A ref's full name, the commit it shall point to, and the one it must point to now (None: no such ref)."""

    ref: str
    new: str | None
    expect: str | None


class Delivery(Protocol):
    """One push's way of putting objects; what is put lasts from `sync` on."""

    def put(
        self, objects: Objects, ids: Collection[str], *, threads: int, sizes: Mapping[str, int], advance: Advance
    ) -> None:
        """Put those objects that are not there, each verified, and each after what it is a delta against.

        Args:
            objects: where they are.
            ids: which; what they are deltas against is among them, or there already.
            threads: how many.
            sizes: bytes that an object counts for in what `advance` is told.
            advance: told of what has been put.

        Raises:
            CorruptError: an object is damaged here.
            StoreError: the remote cannot be written.
        """

    def put_commits(self, objects: Objects, ids: Sequence[str], *, threads: int) -> None:
        """Put commits when all that their trees need is there; parents stand before their children in `ids`."""

    def rely_on(self, ids: Iterable[str]) -> None:
        """Keep objects that are there already from being cleared away as left over."""

    def sync(self) -> None:
        """Return once everything put, or relied on, would survive a power cut."""


class Remote(Source, Protocol):
    """Another store. A hub's is another implementation of this."""

    def exists(self) -> bool:
        """Whether there is a store yet.

        Raises:
            StoreError: there can be none: no such folder or bucket, no access, another format.
        """

    def make(self, head: str) -> None:
        """Make an empty store whose HEAD names a branch; one that is there is left as it is."""

    def refs(self) -> dict[str, str]:
        """Branches and tags, by full name, and the commits they point to.

        Raises:
            RefError: one is damaged, or has a name that is not allowed.
        """

    def head(self) -> str:
        """The branch (full name) that HEAD names."""

    def has(self, ids: Collection[str], *, threads: int) -> set[str]:
        """Which of these objects are there."""

    def delivering(self) -> AbstractContextManager[Delivery]:
        """Put objects."""

    def update(self, moves: Sequence[Move]) -> None:
        """Move or make refs by compare-and-swap, as `Refs.update` does: of two who move one at once, one wins.

        Raises:
            RefError: one is not where it was expected to be; those before it have been moved.
        """
