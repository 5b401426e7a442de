"""Leases: what running readers hold, and `gc` leaves, whatever the refs say.

A lease is a shared lock on one byte of the store's `format` file: that whose number is the first fifteen digits of the
id. So nothing is written, nothing can be left behind, and a store that can only be read can be leased from. The locks
belong to an open file (`F_OFD_SETLK`), not to a process: the kernel gives them back when the last holder of the file is
gone, and `gc` sees those of its own process too.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import threading
from collections import Counter, deque
from collections.abc import Iterator
from weakref import finalize

from ..errors import StoreError
from .places import Places

_SET = getattr(fcntl, "F_OFD_SETLK", None)
_GET = getattr(fcntl, "F_OFD_GETLK", None)
_FLOCK = struct.Struct("hhqqi4x")  # struct flock of 64-bit Linux: type, whence, start, length, process


class Leases:
    """The leases of a store: this process's to take, everybody's to see.

    Where the system has no such locks (it is not Linux), nothing is held, and age alone protects what a reader reads.
    """

    def __init__(self, places: Places) -> None:
        self._places = places
        self._counts: Counter[str] = Counter()
        self._dropped: deque[str] = deque()
        self._guard = threading.Lock()
        self._fd = -1
        self._owner = 0

    @contextlib.contextmanager
    def held(self, object_id: str) -> Iterator[None]:
        """Hold an object, and with it all that it needs, for a block."""
        self._take(object_id)
        try:
            yield
        finally:
            self._drop(object_id, os.getpid())

    def hold_for(self, holder: object, object_id: str) -> None:
        """Hold an object, and with it all that it needs, for as long as `holder` lives."""
        self._take(object_id)
        finalize(holder, self._drop, object_id, os.getpid()).atexit = False  # the kernel gives back what is left

    def any(self, object_id: str) -> bool:
        """Whether anybody holds an object; may also say so of another one whose id begins alike."""
        if _GET is None:
            return False
        self._settle()
        fd = os.open(self._places.format, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return _call(fd, _GET, fcntl.F_WRLCK, object_id) != fcntl.F_UNLCK
        finally:
            os.close(fd)

    def _take(self, object_id: str) -> None:
        # Under the store's lock, so that `gc` sees it before it removes another batch. Where that cannot be had, nobody
        # can write to the store, `gc` neither.
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(StoreError):
                stack.enter_context(self._places.locked(shared=True))
            with self._guard:
                if self._owner != os.getpid():
                    # The locks of a file opened before a fork are shared with the parent, so it is left open for these.
                    self._owner, self._fd = os.getpid(), -1
                    self._counts.clear()
                    self._dropped.clear()
                self._counts[object_id] += 1
                if self._counts[object_id] == 1:
                    self._set(object_id, fcntl.F_RDLCK)
        self._settle()

    def _drop(self, object_id: str, owner: int) -> None:
        if owner == os.getpid():  # what a parent process holds is not its child's to give back
            self._dropped.append(object_id)
            self._settle()

    def _settle(self) -> None:
        # A holder's end may come at any moment, in a thread that is just inside here: then that thread does it.
        while self._dropped and self._guard.acquire(blocking=False):
            try:
                with contextlib.suppress(IndexError):
                    object_id = self._dropped.popleft()
                    self._counts[object_id] -= 1
                    if not self._counts[object_id]:
                        del self._counts[object_id]
                        self._set(object_id, fcntl.F_UNLCK)
            finally:
                self._guard.release()

    def _set(self, object_id: str, kind: int) -> None:
        with contextlib.suppress(OSError):  # a file system without locks
            if self._fd < 0:
                self._fd = os.open(self._places.format, os.O_RDONLY | os.O_CLOEXEC)
            if _SET is not None:
                _call(self._fd, _SET, kind, object_id)
        if not self._counts and self._fd >= 0:
            os.close(self._fd)  # a disk can be unmounted when nobody reads from it
            self._fd = -1


def _call(fd: int, command: int, kind: int, object_id: str) -> int:
    request = _FLOCK.pack(kind, os.SEEK_SET, int(object_id[:15], 16), 1, 0)
    return int(_FLOCK.unpack(fcntl.fcntl(fd, command, request))[0])
