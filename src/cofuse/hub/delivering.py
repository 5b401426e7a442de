"""Taking objects into a repository's store from who may be anybody: each verified, each after all that it needs.

So a store of a hub is closed at any moment, whatever a client sends and wherever it stops: what is there has all it needs there.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import struct
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from weakref import WeakValueDictionary

from ..checkpoint import TensorSpec
from ..errors import CorruptError
from ..store.commits import load_commit
from ..store.envelope import parse
from ..store.objects import ID
from ..store.places import explained
from ..store.receiving import ObjectFile, OnDisk, Receiving
from ..store.remotes.apart import Antechamber
from ..store.trees import Plain, load_checked_spec, load_header, load_plain, load_tree
from ..store.writing import Writing
from . import uploads
from .faults import Refused, TooLarge, Unavailable
from .hub import Hub
from .quotas import charge, count
from .repositories import Seen

FRAME = struct.Struct("<32sQ")  # in a batch: an object's id, the bytes of its file, then the file
BATCH = 72 * 1024 * 1024  # bytes that a batch may have; a larger object goes as an upload

_turns: WeakValueDictionary[str, _Turn] = WeakValueDictionary()
_guard = threading.Lock()


class _Turn:
    """A lock that goes with the last who uses it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()


class Batch:
    """Objects that arrive one after another; see `batch`.

    Args:
        hub: where.
        seen: into which repository, and by whom.
        folder: the writer's own, beside the objects.
    """

    def __init__(self, hub: Hub, seen: Seen, folder: Path) -> None:
        self._hub, self._repository, self.folder = hub, seen.repository, folder
        self._store = hub.store(seen.repository)
        self._pen = Writing(self._store.objects, folder, 1)
        self._came: dict[str, tuple[Path, int]] = {}
        self._raw = bytearray()
        self._missing = 0
        self._fd = -1

    def take(self, chunks: Sequence[bytes]) -> None:
        """Take bytes of the body.

        Raises:
            FullError: the disk has no room.
            Refused: they are no batch.
        """
        with explained("a batch of objects"):
            for chunk in chunks:
                view = memoryview(chunk)
                while view:
                    view = view[self._some(view) :]

    def keep(self, upload: str | None = None) -> dict[str, int]:
        """Verify what has come, and give it its place; says how many objects are new.

        Args:
            upload: the key of the one that it has come from; it is forgotten.

        Raises:
            Full: the quota has no room.
            Refused: one is not what its id says, or what it needs is not here. Those before it are kept.
        """
        if self._missing or self._raw:
            raise Refused("the last object is cut short", got=f"{self._missing} bytes are missing")
        new = {object_id: size for object_id, (_, size) in self._came.items() if object_id not in self._store.objects}
        with self._hub.database.writing() as transaction:
            if upload is not None:
                uploads.discard(self._hub, transaction, upload)  # its bytes are counted as the object's from here on
                transaction.flush()
            charge(transaction, self._hub.settings.limits, self._repository, sum(new.values()))
        spared = sum(new.values())
        kept = 0
        try:
            for object_id, (path, size) in self._came.items():
                if object_id not in new:
                    self._pen.rely_on(object_id)
                elif self._name(object_id, path):
                    spared -= size
                    kept += 1
            self._pen.sync()
        finally:
            self._pen.close()
            if spared:
                with self._hub.database.writing() as transaction:
                    count(transaction, self._repository, -spared)
        with contextlib.suppress(*(() if upload is None else (Unavailable,))):
            # What an upload has become cannot be sent again, but comes with its commit.
            self._store.refs.keep(self._came)
        return {"objects": len(self._came), "new": kept}

    def add(self, object_id: str, path: Path) -> None:
        """An object whose file has come otherwise; it is not changed."""
        link = self.folder / f"came-{len(self._came)}"
        with explained("an upload"):
            try:
                os.link(path, link)
            except OSError:
                shutil.copyfile(path, link)  # uploads are on another disk
        self._came[object_id] = link, link.stat().st_size

    def close(self) -> None:
        """Close what is open."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _some(self, view: memoryview) -> int:
        """Take the head of a frame, or a part of its object; gives how many bytes that was."""
        if not self._missing:
            taken = min(len(view), FRAME.size - len(self._raw))
            self._raw += view[:taken]
            if len(self._raw) == FRAME.size:
                raw, size = FRAME.unpack(self._raw)
                self._raw.clear()
                self._begin(raw.hex(), size)
            return taken
        taken = os.write(self._fd, view[: self._missing])
        self._missing -= taken
        if not self._missing:
            self.close()
        return taken

    def _begin(self, object_id: str, size: int) -> None:
        if not 0 < size <= BATCH or object_id in self._came:
            raise Refused("not a batch of objects", where=object_id, got=f"{size} bytes", expected="each object once")
        path = self.folder / f"came-{len(self._came)}"
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        self._came[object_id] = path, size
        self._missing = size

    def _name(self, object_id: str, path: Path) -> bool:
        """Give an object its place; whether it had none."""
        try:
            with open(path, "rb") as file:
                head = parse(file.fileno(), object_id).head
            most = self._hub.settings.limits.file
            if head.size > most:
                raise TooLarge("the object is too large", where=object_id, got=head.size, expected=f"at most {most}")
            source = _OneFile(self._repository.full_name, path)
            if head.kind in ("tree", "commit"):
                return self._name_whole(object_id, source)
            return Receiving(self._store.objects, self._pen, self.folder, source).adopt(object_id, path)
        except CorruptError as error:
            raise Refused(error.what, where=object_id, got=error.got, expected=error.expected) from None

    def _name_whole(self, object_id: str, source: _OneFile) -> bool:
        """The same for a tree or a commit, which needs others."""
        folder = self.folder / f"antechamber-{object_id}"
        arriving = Antechamber(self._store.objects, self._pen, folder, source)
        arriving.receive([object_id], 1)
        for needed in _needs(arriving, object_id):
            # What came in this batch, before it, is young and will be synced with it.
            if not (needed in self._store.objects if needed in self._came else self._pen.keep(needed)):
                raise CorruptError(
                    "what it needs is not here", got=needed, expected="parts before what they are part of"
                )
        self._pen.sync()
        with _turn(self._repository.key):
            new = object_id not in self._store.objects
            arriving.let_in([object_id], 1)
        return new


def _needs(arriving: Antechamber, object_id: str) -> Iterator[str]:
    """What a tree or commit is made of, itself read and checked."""
    if arriving.envelope(object_id).head.kind == "commit":
        commit = load_commit(arriving, object_id)
        load_tree(arriving, commit.tree)  # it is one, and not something else of that id
        for parent in commit.parents:
            load_commit(arriving, parent)
        yield from (commit.tree, *commit.parents)
        return
    for name, entry in load_tree(arriving, object_id).files.items():
        where = f"tree {object_id}: {name}"
        if isinstance(entry, Plain):
            load_plain(arriving, entry, where)
            yield entry.id
            continue
        header = load_header(arriving, entry, where)
        yield entry.header
        for tensor, spot in zip(entry.tensors, header.entries.values(), strict=True):
            load_checked_spec(arriving, tensor, TensorSpec(spot.dtype, spot.shape), where)
            yield tensor


@contextlib.contextmanager
def batch(hub: Hub, seen: Seen) -> Iterator[Batch]:
    """Take objects for a block; nothing unfinished stays after it."""
    with hub.store(seen.repository).objects.places.staged() as folder:
        taking = Batch(hub, seen, folder)
        try:
            yield taking
        finally:
            taking.close()


def deliver_upload(hub: Hub, seen: Seen, object_id: str, key: str) -> dict[str, int]:
    """Take an object from a finished upload, which is gone then.

    Raises:
        Conflict, Unknown: see `uploads.finished`.
        Refused: it is not that object.
    """
    check_id(object_id)
    with hub.database.reading() as look:
        path = uploads.finished(hub, look, seen, key)
    with batch(hub, seen) as taking:
        taking.add(object_id, path)
        return taking.keep(key)


def check_id(object_id: str) -> str:
    """Refuse what is no object's id.

    Raises:
        Refused: it is not.
    """
    if not ID.fullmatch(object_id):
        raise Refused("not an object id", got=ascii(object_id[:80]), expected="64 hex digits")
    return object_id


class _OneFile:
    """A source of a single object."""

    def __init__(self, name: str, path: Path) -> None:
        self.name, self._path = name, path

    @contextlib.contextmanager
    def open(self, object_id: str) -> Iterator[ObjectFile]:
        """See `Source`."""
        with open(self._path, "rb", buffering=0) as file:
            yield OnDisk(self._path, file.fileno())


@contextlib.contextmanager
def _turn(key: str) -> Iterator[None]:
    with _guard:
        turn = _turns.get(key) or _turns.setdefault(key, _Turn())
    with turn.lock:
        yield
