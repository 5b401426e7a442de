"""Files of versions as files on the disk, each once, under the SHA-256 of its bytes: what downloads are served from.

A store keeps weights as chunks of deltas, and a server that put them together for each request would be slow. So a file is
put together once, verified, and then handed to the kernel as it is. The folder is a cache: whoever removes it loses time.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

from blake3 import blake3

from ..errors import CofuseError, CorruptError
from ..store import Store
from ..store.checkout import Piece, pieces
from ..store.codecs import Bytes
from ..store.commits import load_commit
from ..store.places import explained, make_folder
from ..store.sha256 import file_sha256, known_sha256, note_sha256
from ..store.trees import Plain, Tree, Weights, load_tree
from ..store.workers import Workers

Entry = Plain | Weights
LARGE = 1024 * 1024  # bytes from which a file is known by its SHA-256; weights always are
GRACE = 60.0  # seconds that a file stays after somebody was told of it: the kernel opens it a moment later
_BLOCK = 4096  # what the smallest file takes
_PARTS = 16  # of the room are written between two looks at how much there is
_AHEAD = 2  # one chunk is read, and verified, while another is hashed: SHA-256 is one long chain
_REMEMBERED = 65_536
_WHERE = "the hub's files"  # never a path: this is what clients are told


class Files:
    """Files by content; safe to be used by many threads and processes.

    Args:
        folder: their own, on any file system.
        most: bytes that they may take. What was not asked for longest goes first; only what is being served right now may
            take more for a while.
    """

    def __init__(self, folder: Path, most: int) -> None:
        self.folder = folder
        self.most = most
        self._making: dict[str, tuple[threading.Lock, int]] = {}
        self._guard = threading.Lock()
        self._written: int | None = None  # since the last look; None: never looked
        self._git: OrderedDict[str, str] = OrderedDict()
        make_folder(folder)

    def file(self, store: Store, entry: Entry) -> tuple[Path, str]:
        """A file of a version, on the disk for at least a minute from now, and its SHA-256.

        Raises:
            CorruptError: something stored is damaged.
            FullError: there is no room.
        """
        known = known_sha256(store.objects, entry)
        place = None if known is None else self._there(known, entry.size)
        if place is not None and known is not None:
            return place, known
        key = _key(entry)
        with self._alone(key):
            known = known_sha256(store.objects, entry)  # somebody may just have made it
            place = None if known is None else self._there(known, entry.size)
            if place is not None and known is not None:
                return place, known
            return self._make(store, entry, known)

    def sha256(self, store: Store, entry: Entry) -> str:
        """The SHA-256 of a file of a version; where nobody knows it, the file is made meanwhile: it is asked for next."""
        known = known_sha256(store.objects, entry)
        if known is not None:
            return known
        if entry.size > self.most:
            with self._alone(_key(entry)):
                return file_sha256(store.objects, entry)
        return self.file(store, entry)[1]

    def warm(self, store: Store, commit_id: str) -> None:
        """Make the large files of a version, which will be asked for, in the background: clients wait ten seconds for a hash."""
        threading.Thread(target=self._warm, args=(store, commit_id), daemon=True).start()

    def _warm(self, store: Store, commit_id: str) -> None:
        with contextlib.suppress(CofuseError, OSError):  # who asks for it is told
            tree_id = load_commit(store.objects, commit_id).tree
            with store.objects.leases.held(tree_id):
                for path, entry in sorted(load_tree(store.objects, tree_id).files.items()):
                    if is_large(path, entry.size):
                        self.sha256(store, entry)

    def git_sha1(self, store: Store, entry: Plain) -> str:
        """The id that git would give a small file."""
        with self._guard:
            found = self._git.get(entry.id)
        if found is None:
            found = git_blob(bytes(store.objects.read(entry.id, kind="file")))
            with self._guard:
                self._git[entry.id] = found
                while len(self._git) > _REMEMBERED:
                    self._git.popitem(last=False)
        return found

    def adopt(self, source: Path, sha256: str) -> None:
        """Take a file whose SHA-256 somebody has just verified, where that costs nothing: it is linked, not copied."""
        place = self._place(sha256)
        size = source.stat().st_size
        if size > self.most // 2:
            return
        make_folder(place.parent)
        with contextlib.suppress(OSError):  # there already, or another file system
            os.link(source, place)
            os.utime(place)
            self._account(size)

    def _place(self, sha256: str) -> Path:
        return self.folder / sha256[:2] / sha256

    def _there(self, sha256: str, size: int) -> Path | None:
        place = self._place(sha256)
        try:
            if place.stat().st_size == size:
                os.utime(place)  # young again; if it has just gone, the next line finds out
                return place if place.exists() else None
            place.unlink()
        except OSError:
            pass
        return None

    def _make(self, store: Store, entry: Entry, known: str | None) -> tuple[Path, str]:
        self._account(entry.size)
        temporary = self.folder / f"partial-{secrets.token_hex(8)}"
        digest = hashlib.sha256()
        try:
            with explained(_WHERE), open(temporary, "xb") as file:
                fcntl.flock(file.fileno(), fcntl.LOCK_EX)  # what nobody holds was left by a kill
                if entry.size and hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, entry.size)  # a full disk is found out before any work
                for data in _bytes(store, entry):
                    digest.update(data)
                    file.write(data)
                file.flush()
                os.fsync(file.fileno())
                found, size = digest.hexdigest(), file.tell()
                if size != entry.size or found != (known or found):
                    raise CorruptError("a file is not what was written down of it", got=found, expected=known)
                place = self._place(found)
                make_folder(place.parent)
                os.replace(temporary, place)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        if known is None:
            note_sha256(store.objects, entry, found)
        return place, found

    @contextlib.contextmanager
    def _alone(self, key: str) -> Iterator[None]:
        """Nobody else, thread or process, makes the file of this key meanwhile."""
        with self._guard:
            lock, users = self._making.get(key, (threading.Lock(), 0))
            self._making[key] = lock, users + 1
        try:
            with lock, explained(_WHERE), open(self.folder / f"lock-{key[:2]}", "wb") as file:
                # One of 256 locks: files of one lock wait for each other now and then, and nothing is ever left behind.
                fcntl.flock(file.fileno(), fcntl.LOCK_EX)
                yield
        finally:
            with self._guard:
                lock, users = self._making[key]
                if users == 1:
                    del self._making[key]
                else:
                    self._making[key] = lock, users - 1

    def _account(self, size: int) -> None:
        """Note that bytes are about to be written; now and then, make room."""
        with self._guard:
            self._written = None if self._written is None else self._written + max(size, _BLOCK)
            look = self._written is None or self._written > self.most // _PARTS
            if look:
                self._written = size
        if look:
            self.sweep(self.most - size - self.most // _PARTS)

    def sweep(self, most: int) -> int:
        """Remove what was not asked for longest until at most so many bytes are left; gives the bytes that are."""
        found = []
        for folder in self.folder.iterdir():
            if folder.name.startswith("partial-"):
                _drop_left(folder)
            elif folder.is_dir():
                found += [(s.st_mtime, max(s.st_size, _BLOCK), p) for p, s in _files(folder)]
        total, now = sum(size for _, size, _ in found), time.time()
        for at, size, path in sorted(found):
            if total <= most or at > now - GRACE:
                break
            path.unlink(missing_ok=True)
            total -= size
        return total


def is_large(path: str, size: int) -> bool:
    """Whether a file is known by its SHA-256, and uploaded beside the commit rather than in it.

    >>> is_large("model.safetensors", 100), is_large("config.json", 100)
    (True, False)
    """
    return path.endswith(".safetensors") or size > LARGE


def git_blob(data: bytes) -> str:
    """The id that git gives a file's bytes.

    >>> git_blob(b"")
    'e69de29bb2d1d6434b8b29ae775ad8c2e48c5391'
    """
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _key(entry: Entry) -> str:
    parts = (entry.id,) if isinstance(entry, Plain) else (entry.header, *entry.tensors)
    return blake3("\n".join(parts).encode()).hexdigest()


def _bytes(store: Store, entry: Entry) -> Iterator[Bytes]:
    """A file's bytes, every chunk verified, and its header too."""

    def chunk(piece: Piece) -> Bytes:
        with store.objects.opened(piece.object_id) as found:
            return found.chunk(piece.chunk)

    workers = Workers(_AHEAD)
    try:
        yield from workers.in_order(chunk, pieces(store.objects, Tree({"file": entry}, None)))
    finally:
        workers.close()


def _files(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    for path in folder.iterdir():
        with contextlib.suppress(OSError):
            yield path, path.stat()


def _drop_left(path: Path) -> None:
    with contextlib.suppress(OSError), open(path, "rb") as file:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
