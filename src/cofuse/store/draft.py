"""An object's file while it is being written."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from .envelope import Envelope, Head, length
from .places import explained


class Draft:
    """An object under its temporary name; the file is made when the first byte must be written."""

    def __init__(self, path: Path, head: Head) -> None:
        self._path = path
        self._at = length(head)
        self._fd = -1

    def __enter__(self) -> Draft:
        return self

    @property
    def closed(self) -> bool:
        return self._fd < 0

    def append(self, stored: bytes) -> None:
        self._write(stored, self._at)
        self._at += len(stored)

    def publish(self, envelope: Envelope, path: Path, shared: bytes = b"", *, replace: bool = False) -> None:
        """Complete the file, sync it, and give it its id's name, where nothing is touched unless it is to be replaced."""
        self.append(shared + envelope.tail())
        self._write(envelope.encode(), 0)
        with explained(path):
            os.fsync(self._fd)
            with contextlib.suppress(FileExistsError):
                path.parent.mkdir()
            if replace:
                os.rename(self._path, path)
                return
            try:
                os.link(self._path, path)
            except FileExistsError:
                pass  # another writer was faster, with the same object
            except OSError:
                os.rename(self._path, path)  # a file system without hard links

    def _write(self, data: bytes, at: int) -> None:
        view = memoryview(data)
        with explained(self._path):
            if self.closed:
                self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444)
            while view:
                done = os.pwrite(self._fd, view, at)
                view, at = view[done:], at + done

    def __exit__(self, *_: object) -> None:
        if not self.closed:
            os.close(self._fd)
            self._path.unlink(missing_ok=True)
