"""A repository's folder as a copy of its store in a bucket: made alike, and moved second."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import EllipsisType

from ..checkpoint import for_each
from ..errors import RefError, StoreError
from ..store import Store
from ..store.ancestry import is_ancestor
from ..store.commits import load_commit
from ..store.places import explained, make_folder, replace
from ..store.refs import NAMESPACES, REMOTES, Refs
from ..store.remotes import deliver, receive
from ..store.remotes.bucket import BucketRemote
from ..store.remotes.remote import Move
from .faults import Unavailable

OWN = tuple(under for under in NAMESPACES if under != REMOTES)  # what a repository of a hub has
WAIT = 10.0  # seconds that a request waits for a copy, or for its turn
_THREADS = 8  # of which most wait for the network


class Copy:
    """The folder of a repository, and the bucket's store that it is a copy of.

    `copy` in it says of which, and of which run of the hub: another machine may have had its turn between two runs. It
    is there before the first ref, and complete when all of them are. `moving` names what is being moved.

    Args:
        remote: the bucket's store.
        root: the folder.
        stamp: what `copy` says when the two are alike.
        reached: says of a bucket that does not do as asked, for a block, that it cannot be reached.
    """

    def __init__(
        self, remote: BucketRemote, root: Path, stamp: str, reached: Callable[[], AbstractContextManager[None]]
    ) -> None:
        self.remote, self.root = remote, root
        self._stamp, self._reached = stamp, reached
        self._said, self._moving = root / "copy", root / "moving"
        self.lock = root.with_suffix(".lock")  # beside it, because it may not be there yet

    def store(self) -> Store:
        """Its store, whose refs move in both places."""
        store = Store.open(self.root)
        store.refs = CopiedRefs(store, self)
        return store

    def is_current(self) -> bool:
        """Whether it is like the bucket, as far as this machine has moved it."""
        return read_text(self._said) == self._stamp and (self.root / "format").is_file() and not self._moving.exists()

    def is_copy(self) -> bool:
        """Whether it is, or is to be, a copy of the bucket's: else it is from before there was one."""
        return self._lines() > 0 or not (self.root / "format").is_file()

    def is_whole(self) -> bool:
        """Whether it can be read: it may be behind."""
        return (self.root / "format").is_file() and self._lines() != 2

    def _lines(self) -> int:
        """How much it says of itself: two lines, the bucket and the hub; and the run, when it is complete."""
        said, own = read_text(self._said).splitlines(), self._stamp.splitlines()
        return len(said) if said[:2] == own[:2] else 0

    def bring(self, *, patience: float | None = WAIT) -> None:
        """Make it like the bucket; or the bucket like it, where it is from before there was one.

        Raises:
            Unavailable: the bucket cannot be reached, or the two have gone different ways.
            CorruptError: the bucket is damaged.
        """
        with self.turn(patience):
            pass

    @contextlib.contextmanager
    def turn(self, patience: float | None = WAIT) -> Iterator[None]:
        """Have the refs for oneself, with the copy like the bucket.

        Raises:
            Unavailable: another has them for too long, or the bucket cannot be reached.
        """
        with explained(self.root):
            make_folder(self.root.parent)
            fd = os.open(self.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            _lock(fd, patience)
            if not self.is_current():
                with self._reached():
                    try:
                        self._mend()
                    except RefError as error:  # of no ref that somebody has asked for
                        raise StoreError(error.what, where=error.where, got=error.got) from None
            yield
        finally:
            os.close(fd)

    def move(self, move: Move) -> None:
        """Move a ref in the bucket, in one's turn; from here until `settled` a kill leaves a note of it."""
        write_text(self._moving, move.ref)
        with self._reached():
            try:
                self.remote.update([move])
            except RefError:
                self._mend()  # it has moved without us, and whoever tries again is to see that
                raise

    def point_head(self, ref: str) -> None:
        """The same for HEAD."""
        write_text(self._moving, "HEAD")
        with self._reached():
            self.remote.point_head(ref)

    def settled(self) -> None:
        """What was moved has moved here too."""
        self._moving.unlink(missing_ok=True)

    def keep(self, store: Store, ids: Collection[str], *, pinned: bool) -> None:
        """Bring objects to the bucket: commits with all that they need; trees come with their commits.

        Args:
            store: its store.
            ids: which.
            pinned: have the commits come back without a ref: the database is about to name them.
        """
        if not self.is_current():
            self.bring()
        kinds = {object_id: store.objects.envelope(object_id).head.kind for object_id in ids}
        commits = [object_id for object_id, kind in kinds.items() if kind == "commit"]
        parts = [object_id for object_id, kind in kinds.items() if kind not in ("commit", "tree")]
        with self._reached():
            if parts:
                wanted = dict.fromkeys(i for part in parts for i in (part, *store.objects.bases(part)))
                there = self.remote.has(wanted, threads=_THREADS)
                missing = [object_id for object_id in wanted if object_id not in there]
                with self.remote.delivering() as delivery:
                    delivery.put(store.objects, missing, threads=_THREADS, sizes={}, advance=lambda _: None)
            if commits:
                # What refs here reach is there, so that nothing of it is asked for.
                had = {*store.branches().values(), *store.tags().values()}
                deliver(store, self.remote, commits, had=had, threads=_THREADS)
                if pinned:
                    before = {parent for one in commits for parent in load_commit(store.objects, one).parents}
                    for_each(self.remote.pin, [one for one in commits if one not in before], _THREADS)

    def _mend(self) -> None:
        """Make both alike, in one's turn."""
        if not self.is_copy():
            self._hand_over(Store.open(self.root))
        if not self.remote.exists():
            raise StoreError("the bucket has not this repository", where=self.remote.name)
        store = Store.init(self.root)
        there, own = self.remote.all_refs(), Refs(store.objects.places)
        if not self._lines():
            write_text(self._said, "".join(self._stamp.splitlines(keepends=True)[:2]))
        receive(store, self.remote, {*there.values(), *self.remote.pinned()}, threads=_THREADS)
        for ref in [ref for under in OWN for ref in own.names(under) if ref not in there]:
            own.update(ref, None)
        for ref, commit in there.items():
            own.update(ref, commit)
        own.point_head(self.remote.head())
        self._moving.unlink(missing_ok=True)
        # Last: it is a copy, of this run, when all of it is there.
        write_text(self._said, self._stamp)

    def _hand_over(self, store: Store) -> None:
        """Bring all of a repository that was here before the bucket was."""
        self.remote.make(store.refs.head())
        there = self.remote.all_refs()
        here = {ref: commit for under in OWN for ref in store.refs.names(under) if (commit := store.refs.get(ref))}
        for ref, commit in here.items():
            now = there.get(ref, commit)
            if now != commit and not (now in store.objects and is_ancestor(store.objects, now, commit)):
                raise StoreError("the hub's folder and the bucket have gone different ways", where=ref, got=now)
        deliver(store, self.remote, list(here.values()), had=there.values(), threads=_THREADS)
        self.remote.update([Move(ref, commit, there.get(ref)) for ref, commit in sorted(here.items())])
        self.remote.point_head(store.refs.head())


class CopiedRefs(Refs):
    """Refs that move in the bucket first, and then in the copy.

    Args:
        store: the copy's.
        copy: the copy.
    """

    def __init__(self, store: Store, copy: Copy) -> None:
        super().__init__(store.objects.places)
        self._store, self._copy = store, copy

    def keep(self, ids: Collection[str]) -> None:
        """See `Refs`: the bucket.

        Raises:
            Unavailable: it cannot be reached.
        """
        self._copy.keep(self._store, ids, pinned=True)

    def update(self, ref: str, new: str | None, *, expect: str | EllipsisType | None = ...) -> None:
        """See `Refs`; in the bucket too.

        Raises:
            RefError: see `Refs`.
            Unavailable: the bucket cannot be reached, so that nobody knows of the move; or its answer was lost.
        """
        if new is not None:
            if new not in self._store.objects:
                raise RefError("no such commit", where=ref, got=new)
            self._copy.keep(self._store, [new], pinned=False)
        with self._copy.turn():
            now = self.get(ref)
            if new != now and expect in (now, ...):
                self._copy.move(Move(ref, new, now))
            super().update(ref, new, expect=expect)
            self._copy.settled()

    def point_head(self, ref: str) -> None:
        """See `Refs`; in the bucket too."""
        with self._copy.turn():
            self._copy.point_head(ref)
            super().point_head(ref)
            self._copy.settled()


def _lock(fd: int, patience: float | None) -> None:
    give_up = None if patience is None else time.monotonic() + patience
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if give_up is not None and time.monotonic() > give_up:
                raise Unavailable("the repository is busy", hint="try again in a moment") from None
            time.sleep(0.005)
        else:
            return


def write_text(path: Path, text: str) -> None:
    """Write a small file, whole or not at all, so that it outlives a power cut; for whoever has the turn."""
    with explained(path):
        replace(path, text.encode(), path.with_suffix(".partial"))


def read_text(path: Path) -> str:
    """Read a small file; nothing where there is none."""
    try:
        return path.read_text()
    except (FileNotFoundError, NotADirectoryError):
        return ""
