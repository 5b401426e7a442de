"""Where a store keeps what, and the lock that writers take in turn."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from ..checkpoint import sync_folder
from ..errors import FullError, StoreError

FOLDER = ".cofuse"
FORMAT = b"cofuse store 1\n"
LOCK_SECONDS = 60.0


class Places:
    """The paths inside a store's folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.format = root / "format"
        self.head = root / "HEAD"
        self.refs = root / "refs"
        self.objects = root / "objects"
        self.staging = root / "tmp"

    def replace(self, path: Path, data: bytes) -> None:
        """Give a small file new content, atomically and durably; for the holder of the lock.

        One temporary name is enough for one holder, and what a killed one left there is overwritten.
        """
        replace(path, data, self.root / "partial")

    @contextlib.contextmanager
    def locked(self, *, shared: bool = False) -> Iterator[None]:
        """Hold the store's only lock: for moving refs, opening staging folders and removing objects, never for long.

        Those who only say that they rely on something share it among themselves. The kernel gives a `flock` back when its holder dies, whatever kills it, so there are no stale locks to take
        over; a lock file with a process id would take one from a live process of another container.

        Raises:
            StoreError: another process has held it for a minute, or the store cannot be written to.
        """
        with explained(self.root):
            fd = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            give_up = time.monotonic() + LOCK_SECONDS
            with explained(self.root):
                while not _lock(fd, fcntl.LOCK_SH if shared else fcntl.LOCK_EX):
                    if time.monotonic() > give_up:
                        raise StoreError("the store is busy", where=self.root, got=f"locked for {LOCK_SECONDS:.0f} s")
                    time.sleep(0.005)
            yield
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def staged(self) -> Iterator[Path]:
        """A folder of this writer's own, on the same file system as the objects, gone when the block ends.

        What killed writers left is swept here: a live writer holds the lock of its folder.
        """
        with self.locked(), explained(self.root):
            self.staging.mkdir(exist_ok=True)
            for folder in self.staging.iterdir():
                _sweep(folder)
            mine = self.staging / secrets.token_hex(8)
            mine.mkdir()
            fd = os.open(mine / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            _lock(fd)
        try:
            yield mine
        finally:
            shutil.rmtree(mine, ignore_errors=True)
            os.close(fd)

    def touch(self, path: Path) -> bool:
        """Make an object's file young, because a writer relies on it; False when it is not there.

        `gc` removes under the same lock, and nothing that is younger than a writer at work: once this has said True the
        file stays; where it says False the writer must write it again.
        """
        with self.locked(shared=True):
            try:
                os.utime(path)
            except FileNotFoundError:
                return False
            except PermissionError:
                return path.is_file()  # another user's: only its age protects it
            except OSError as error:
                raise _in_our_words(error, path) from error
        return True

    def oldest_writer(self) -> int | None:
        """When the oldest writer that is at work began, in nanoseconds by the file system's own clock; None for none."""
        began = []
        with contextlib.suppress(FileNotFoundError):
            for folder in self.staging.iterdir():
                with contextlib.suppress(OSError), open(folder / "lock", "rb") as file:
                    if not _lock(file.fileno()):
                        began.append(os.fstat(file.fileno()).st_mtime_ns)
        return min(began, default=None)


def _lock(fd: int, how: int = fcntl.LOCK_EX) -> bool:
    try:
        fcntl.flock(fd, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _sweep(folder: Path) -> None:
    try:
        fd = os.open(folder / "lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        shutil.rmtree(folder, ignore_errors=True)  # killed between making the folder and its lock
        return
    try:
        if _lock(fd):
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(fd)


def replace(path: Path, data: bytes, temporary: Path) -> None:
    """Give a small file new content, atomically and durably; nobody else writes to `temporary`, on the same disk, meanwhile."""
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)


@contextlib.contextmanager
def explained(where: object) -> Iterator[None]:
    """Operating-system errors in our words."""
    try:
        yield
    except OSError as error:
        raise _in_our_words(error, where) from error


def _in_our_words(error: OSError, where: object) -> StoreError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return (FullError if full else StoreError)(
        "cannot write to the store",
        where=where,
        got=error.strerror or str(error),
        expected="room and permission",
        hint="free some space and run the same command again" if full else None,
    )


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, durably: a folder whose own entry is lost takes its files with it."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    with contextlib.suppress(FileExistsError):
        folder.mkdir()
    sync_folder(folder.parent)
