"""Files and folders that appear whole or not at all: temporary name, fsync, rename, fsync of the folder."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import re
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from ..errors import CheckpointError

_TEMPORARY = re.compile(r"^\.(.+)\.([0-9a-f]{8})\.(partial|old)$")


def sync_folder(folder: Path) -> None:
    """Make renames inside a folder survive a power cut."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_synced(path: Path, data: bytes | bytearray | memoryview) -> None:
    """Write a new file and fsync it, in place; for files inside a folder that is being built."""
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, data: bytes | bytearray | memoryview) -> None:
    """Give a file new content, atomically and durably.

    Raises:
        CheckpointError: it cannot be written; the old content is untouched.
    """
    with replacing(path) as file:
        file.write(data)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of `path`, atomically and durably, when the block ends well, and goes when not.

    Raises:
        CheckpointError: it cannot be written; the old content is untouched.
    """
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary, fd = _claim(path, lambda new: os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666))
        try:
            with open(fd, "wb") as file:  # holds the lock until the file has its name
                yield file
                file.flush()
                os.fsync(fd)
                os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


@contextlib.contextmanager
def building(folder: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of `folder` when the block ends well, and is removed when not.

    What earlier builds beside it left behind when they were killed is removed first.

    Raises:
        CheckpointError: an operating-system error (a full disk, no permission); `folder` is as it was.
    """
    with explained(folder):
        # A link to a folder stays a link: what it points to is replaced, on the disk that was meant.
        folder = Path(os.path.realpath(folder))
        here = Path.cwd()
        if folder == here or folder in here.parents:
            raise CheckpointError(
                "cannot replace the folder that you are in", where=folder, hint="run it from another folder"
            )
        folder.parent.mkdir(parents=True, exist_ok=True)
        sweep(folder.parent)
        temporary, fd = _claim(folder, _make_folder)
        try:
            yield temporary
            sync_folder(temporary)
            _take_place(temporary, folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        finally:
            os.close(fd)


def sweep(folder: Path) -> None:
    """Remove what killed processes left half-built in a folder; what a living one is building stays.

    A build holds a lock on its temporary file or folder. A process number would not do: those of another container
    that shares the disk mean nothing here, and numbers are used again.
    """
    for path in sorted(folder.glob(".*")):
        match = _TEMPORARY.match(path.name)
        if match is None or path.is_symlink():
            continue
        try:
            fd = os.open(path, os.O_RDONLY)
        except OSError:
            continue  # somebody else has just swept it
        try:
            if not _lock(fd):
                continue
            original = folder / match.group(1)
            if match.group(3) == "old" and not original.exists():
                os.rename(path, original)  # killed between the two renames of `_take_place`
            elif path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        finally:
            os.close(fd)


def _make_folder(path: Path) -> int:
    path.mkdir()
    return os.open(path, os.O_RDONLY)


def _claim(path: Path, make: Callable[[Path], int]) -> tuple[Path, int]:
    """A new temporary name beside `path`, made and locked; the descriptor holds the lock."""
    while True:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
        try:
            fd = make(temporary)
        except FileNotFoundError:
            if not path.parent.is_dir():
                raise
            continue  # swept between its making and its opening
        _lock(fd, wait=True)
        if temporary.exists():
            return temporary, fd
        os.close(fd)  # swept between its opening and its locking


def _lock(fd: int, *, wait: bool = False) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False  # held by a living process, or a file system without locks, where nothing is swept
    return True


def _take_place(new: Path, old: Path) -> None:
    if not old.exists():
        os.rename(new, old)
        sync_folder(old.parent)
        return
    if _exchange(new, old):
        sync_folder(old.parent)  # the old content must not go before the new name is safe
        shutil.rmtree(new, ignore_errors=True)
        return
    # No atomic exchange on this system: for a moment the old folder has another name, from which `sweep` restores it.
    aside = old.with_name(new.name.removesuffix("partial") + "old")
    fd = os.open(old, os.O_RDONLY)
    try:
        _lock(fd)
        os.rename(old, aside)
        try:
            os.rename(new, old)
        except OSError:
            os.rename(aside, old)
            raise
        sync_folder(old.parent)
        shutil.rmtree(aside, ignore_errors=True)
    finally:
        os.close(fd)


def _exchange(a: Path, b: Path) -> bool:
    """Swap two paths in one step (Linux `renameat2`); False where that is not to be had."""
    if sys.platform != "linux":
        return False
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    at_cwd, exchange = -100, 2
    return bool(renameat2(at_cwd, os.fsencode(a), at_cwd, os.fsencode(b), exchange) == 0)


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Raise operating-system errors of the block as CheckpointError that names `path`."""
    try:
        yield
    except OSError as error:
        hint = "free some space and run the same command again" if error.errno == errno.ENOSPC else None
        raise CheckpointError(
            "cannot write", where=path, got=error.strerror or str(error), expected="room and permission", hint=hint
        ) from error
