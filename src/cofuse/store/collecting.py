"""Collecting: what no ref, no reader and no writer needs is removed, and whatever else stays whole at every moment.

What a store holds is closed: an object that is there has all it needs there (a commit its parents and its tree, a tree
its parts, a delta its base), because parts are written first and removed last. So whoever holds one object, by a ref,
by a lease (`leases`) or by having just touched it (`Places.touch`), holds all below it.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from itertools import islice
from pathlib import Path

from ..errors import CofuseError, CorruptError, RefError, StoreError
from ..progress import SILENT, Bar, Progress
from .commits import load_commit
from .envelope import MAGIC, MAGIC_DELTA
from .git.roots import roots as roots_of_git
from .objects import ID, Objects
from .places import explained
from .refs import Refs
from .trees import load_tree

GRACE_DAYS = 14.0
_BATCH = 500  # objects removed under one hold of the store's lock: some milliseconds
_TICK = 0.01  # seconds: the clock that stamps files may be behind by this much
_DAY_NS = 86_400 * 10**9


@dataclass(frozen=True, slots=True)
class Collected:
    """What a collection kept and removed, or would remove."""

    kept: int  # objects that a ref or a reader needs, or a writer may
    removed: int  # objects
    freed: int  # bytes


@contextmanager
def refusing_damage() -> Iterator[None]:
    """Say of what is found damaged what to do about it."""
    try:
        yield
    except CorruptError as error:
        hint = "what it needs is not known, so nothing was removed: see cofuse fsck"
        raise CorruptError(error.what, where=error.where, got=error.got, expected=error.expected, hint=hint) from None


def collect(
    objects: Objects,
    refs: Refs,
    *,
    grace_days: float = GRACE_DAYS,
    roots: Iterable[str] = (),
    dry_run: bool = False,
    progress: Progress = SILENT,
) -> Collected:
    """Remove the objects that nothing needs.

        kept    what is reached from a ref, from `roots`, from a lease, or from an object younger than
                min(now - grace, start of the oldest writer at work)

    An object is as old as the last time that a writer relied on it. Those that need others go before these, so that a
    kill at any point leaves nothing that lacks a part.

    Args:
        objects: the store's objects.
        refs: its refs.
        grace_days: how long what nothing needs is kept for whoever comes back to it: unfinished pushes, lost branches.
        roots: ids that are kept as if a ref pointed to them.
        dry_run: only say what would go.
        progress: told of what is looked at and removed.

    Raises:
        CorruptError: something that a ref reaches is missing or damaged, so that what it needs is not known; nothing
            was removed.
        RefError: a ref is damaged; nothing was removed.
        StoreError: the store cannot be written.
    """
    if not grace_days >= 0:
        raise StoreError("not a number of days", got=grace_days, expected="0 or more")
    extra = tuple(roots)
    time.sleep(_TICK)
    with objects.places.staged():  # from here on this is a writer at work too: whoever comes later is younger
        with objects.places.locked():
            began = objects.places.oldest_writer() or 0
        cutoff = min(began, time.time_ns() - int(grace_days * _DAY_NS))
        there = list(objects)
        reached = Reached(objects, progress.bar("looking at what is needed", len(there), "objects"))
        reached.follow([*root_ids(objects, refs), *extra])
        reached.follow((i for i in there if i not in reached and _age(objects, i)[0] >= cutoff), strict=False)
        garbage = [i for i in there if i not in reached]
        removed = freed = 0
        bar = progress.bar("removing", len(garbage), "objects")
        waiting = _needing_first(objects, garbage)
        while batch := list(islice(waiting, _BATCH)):
            with nullcontext() if dry_run else objects.places.locked():
                reached.follow(root_ids(objects, refs))  # those that came meanwhile
                for object_id in batch:
                    bar.advance()
                    changed, size = _age(objects, object_id)
                    if object_id in reached:
                        continue
                    if changed >= cutoff or objects.leases.any(object_id):
                        reached.follow([object_id], strict=False)
                        continue
                    if not dry_run:
                        with explained(objects.places.root), suppress(FileNotFoundError):
                            os.unlink(objects.path(object_id))
                    removed += 1
                    freed += size
            if not dry_run:
                time.sleep(_TICK)  # let those who wait for the lock have a turn
        freed += _given_up(objects.places.root / "arriving", cutoff, dry_run)
    return Collected(len(there) - removed, removed, freed)


class Reached:
    """Objects found by following what needs what.

    Args:
        objects: where they are.
        bar: told of each.
    """

    def __init__(self, objects: Objects, bar: Bar) -> None:
        self._objects = objects
        self._bar = bar
        self._whole: set[str] = set()
        self._parts: set[str] = set()  # needed for their own bytes: a tree that a delta is against may lack its parts

    def __contains__(self, object_id: str) -> bool:
        return object_id in self._whole or object_id in self._parts

    def follow(self, roots: Iterable[str], *, strict: bool = True) -> None:
        """Add some objects and all that they need.

        Raises:
            CorruptError: one of them is missing or damaged; when not `strict` it is added, and taken to need nothing.
        """
        waiting: list[tuple[str, str | None]] = [(root, None) for root in roots]
        while waiting:
            object_id, kind = waiting.pop()
            seen = self._parts if kind == "part" else self._whole
            if object_id in seen:
                continue
            if object_id not in self:
                self._bar.advance()
            seen.add(object_id)
            try:
                waiting += [n for n in needs(self._objects, object_id, kind) if n[1] != "part" or n[0] not in self]
            except CorruptError:
                if strict:
                    raise


def needs(objects: Objects, object_id: str, kind: str | None = None) -> list[tuple[str, str]]:
    """What an object cannot be read or used without, each with its kind.

        commit      its tree and its parents
        tree        its parts, and the tree that it is a delta against, as bytes alone: as a part
        part        the object that it is a delta against

    Args:
        objects: where it is.
        object_id: the object.
        kind: what it is, where whoever named it says so: then the envelope of a part that is kept whole, by far the
            most common thing, is not read.

    Raises:
        CorruptError: it is missing or damaged.
    """
    if kind is None:
        kind = objects.envelope(object_id).head.kind
    if kind == "commit":
        commit = load_commit(objects, object_id)
        return [(commit.tree, "tree"), *((parent, "commit") for parent in commit.parents)]
    parts = load_tree(objects, object_id).objects() if kind == "tree" else []
    return [(part, "part") for part in parts] + _base(objects, object_id)


def _base(objects: Objects, object_id: str) -> list[tuple[str, str]]:
    if _magic(objects, object_id) == MAGIC:
        return []
    base = objects.envelope(object_id).base
    return [] if base is None else [(base, "part")]


def root_ids(objects: Objects, refs: Refs) -> list[str]:
    """The ids in all refs (branches, tags, and whatever else is under `refs/`), and of the trees that git names.

    Raises:
        RefError: a ref is damaged.
    """
    tips = [read_ref(objects, ref) for ref in refs.names("refs/")]
    return [tip for tip in tips if tip is not None] + roots_of_git(objects.places)


def read_ref(objects: Objects, ref: str) -> str | None:
    """The id in any ref, be it of a kind that is not ours; None when it has just been removed.

    Raises:
        RefError: there is none in it.
    """
    path = objects.places.root / ref
    try:
        text = path.read_bytes().decode("ascii", "replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RefError("cannot read a ref", where=path, got=error.strerror) from None
    if not text.endswith("\n") or not ID.fullmatch(text[:-1]):
        raise RefError("the ref is damaged", where=path, got=ascii(text[:80]), expected="a commit id")
    return text[:-1]


def _needing_first(objects: Objects, garbage: list[str]) -> Iterator[str]:
    """The same ids, each before what it needs."""
    inside = set(garbage)
    graph: TopologicalSorter[str] = TopologicalSorter()
    for object_id in garbage:
        below: list[tuple[str, str]] = []
        with suppress(CofuseError):  # what cannot be read holds nothing
            below = needs(objects, object_id)
        graph.add(object_id, *(i for i, _ in below if i in inside))
    try:
        return reversed(list(graph.static_order()))
    except CycleError:
        return iter(garbage)  # deltas in a circle: nobody could ever read them


def _given_up(folder: Path, cutoff: int, dry_run: bool) -> int:
    """Remove what has arrived of large objects that nobody goes on with (`receiving`); gives the bytes."""
    freed = 0
    for path in sorted(folder.glob("*")):
        with suppress(FileNotFoundError), open(path, "rb") as file:
            status = os.fstat(file.fileno())
            with suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if status.st_mtime_ns < cutoff:
                    freed += status.st_size
                    if not dry_run:
                        path.unlink()
    return freed


def _magic(objects: Objects, object_id: str) -> bytes:
    """The first bytes of an object's file; no single flipped bit makes those of a delta those of a whole one."""
    path = objects.path(object_id)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise CorruptError("object is missing", where=objects.places.root, got=object_id) from None
    except OSError as error:
        raise CorruptError("cannot read an object", where=path, got=error.strerror) from None
    try:
        magic = os.pread(fd, len(MAGIC), 0)
    finally:
        os.close(fd)
    if magic not in (MAGIC, MAGIC_DELTA):
        raise CorruptError("not an object", where=path, got=ascii(magic), expected=ascii(MAGIC))
    return magic


def _age(objects: Objects, object_id: str) -> tuple[int, int]:
    """When a writer last relied on an object, and its bytes; long ago, and none, when it is not there."""
    try:
        status = objects.path(object_id).stat()
    except FileNotFoundError:
        return 0, 0
    return status.st_mtime_ns, status.st_size
