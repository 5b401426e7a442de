"""The file of an upload while its bytes arrive: appended by one at a time, hashed on the way, on the disk when acknowledged.

Beside it lies how far its hash is, so that whoever goes on, in another process too, need not read again what is there.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from blake3 import blake3

from ..errors import HubError
from .faults import Conflict, Full
from .midstate import Sha256

NOTED = 64 * 1024 * 1024  # bytes after which what has arrived is brought to the disk, and noted
_BLOCK = 4 * 1024 * 1024
_SUM = 16
_SYNCING = ThreadPoolExecutor(8, "syncing")


class Arriving:
    """An upload's file, open and this writer's alone; see `arriving`.

    Attributes:
        size: bytes that are there.
        hashed: those of them that the hash has taken.
    """

    def __init__(self, path: Path, fd: int) -> None:
        self.path, self._fd = path, fd
        self._notes = path.with_suffix(".sha256")
        self.size = os.fstat(fd).st_size
        self._hash, self.hashed = self._taken_up()
        self._noted = self.hashed
        self._noting: Future[None] | None = None

    def append(self, chunks: Sequence[bytes]) -> None:
        """Take bytes.

        Raises:
            Full: the disk has no room.
        """
        self._catch_up()
        with _explained(self.path):
            for chunk in chunks:
                view = memoryview(chunk)
                while view:
                    done = os.pwrite(self._fd, view, self.size)
                    view, self.size = view[done:], self.size + done
                self._hash.update(chunk)
                self.hashed = self.size
            if self.hashed - self._noted >= NOTED and (self._noting is None or self._noting.done()):
                self._waited()
                # The disk is kept busy while more arrives; and a kill costs no more than this to be read again.
                self._noting = _SYNCING.submit(self._note, self.hashed, self._hash.state)

    def settle(self) -> None:
        """Return once what has arrived would survive a power cut."""
        self._catch_up()
        with _explained(self.path):
            self._waited()
            self._note(self.hashed, self._hash.state)

    def close(self) -> None:
        """Wait for what is under way."""
        with contextlib.suppress(OSError):
            self._waited()

    def _note(self, hashed: int, state: bytes | None) -> None:
        os.fdatasync(self._fd)
        # After the bytes: what it tells of must be there. It may be lost, then they are read again.
        if state is not None and hashed:
            body = hashed.to_bytes(8, "little") + state
            partial = self._notes.with_suffix(".partial")
            partial.write_bytes(body + blake3(body).digest(_SUM))
            os.replace(partial, self._notes)
        self._noted = hashed

    def _waited(self) -> None:
        noting, self._noting = self._noting, None
        if noting is not None:
            noting.result()

    def sha256(self) -> str:
        """Of all that has arrived."""
        self._catch_up()
        return self._hash.hexdigest()

    def cut(self, size: int) -> None:
        """Forget what comes after so many bytes."""
        self.close()
        os.ftruncate(self._fd, size)
        self.size = size
        if self.hashed > size:
            self._hash, self.hashed = self._taken_up()
            self._noted = self.hashed

    def _catch_up(self) -> None:
        """Hash what is there and has not been: what a kill has kept from being noted."""
        while self.hashed < self.size:
            data = os.pread(self._fd, min(_BLOCK, self.size - self.hashed), self.hashed)
            if not data:
                raise HubError("an upload's file is shorter than it was", where=self.path.name)
            self._hash.update(data)
            self.hashed += len(data)

    def _taken_up(self) -> tuple[Sha256, int]:
        """The hash as it was noted, and of how many bytes it is."""
        with contextlib.suppress(OSError):
            raw = self._notes.read_bytes()
            body = raw[:-_SUM]
            hashed = int.from_bytes(body[:8], "little")
            if blake3(body).digest(_SUM) == raw[-_SUM:] and hashed <= self.size and Sha256().state is not None:
                return Sha256(body[8:]), hashed
            self._notes.unlink()  # it tells of other bytes
        return Sha256(), 0


@contextlib.contextmanager
def arriving(path: Path) -> Iterator[Arriving]:
    """Open an upload's file, made if need be; one writer at a time.

    Raises:
        Conflict: somebody else is sending.
    """
    with _explained(path):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict("this upload is being sent by another connection", hint="wait for it") from None
        file = Arriving(path, fd)
        try:
            yield file
        finally:
            file.close()
    finally:
        os.close(fd)


def remove(path: Path) -> None:
    """Remove an upload's file, and what lies beside it."""
    for one in (path.with_suffix(".sha256"), path.with_suffix(".partial"), path):
        one.unlink(missing_ok=True)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise Full("the hub's disk is full", hint="nothing of this request was kept; try later") from None
        raise HubError("cannot write an upload", where=path.name, got=error.strerror) from None
