"""git's packets (pkt-line): four hex digits of length, themselves included, then up to 65,516 bytes; `0000` is a flush.

Source: git's Documentation/gitprotocol-common.txt and gitattributes.txt, "Long Running Filter Process".
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
from collections.abc import Iterable, Iterator

from ...errors import StoreError
from ..codecs import Bytes

MAX_PACKET = 65516  # bytes that one packet carries
_BUFFER = 1 << 20
_VECTORS = 512  # below the system's limit of buffers in one write (IOV_MAX, 1024)
_FLUSH = b"0000"


class Packets:
    """Both directions of a conversation with git.

    Args:
        fd_in: where git writes.
        fd_out: where git reads.
    """

    def __init__(self, fd_in: int, fd_out: int) -> None:
        self._in = io.BufferedReader(io.FileIO(fd_in, closefd=False), _BUFFER)
        self._out = fd_out
        for fd in (fd_in, fd_out):
            with contextlib.suppress(OSError):  # no pipe, or more than this user may have
                fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _BUFFER)

    def read_lines(self) -> list[str] | None:
        """Text packets up to the flush, without their line feeds; None when git has closed its end.

        Raises:
            StoreError: that is not the protocol.
        """
        lines: list[str] = []
        while (size := self._length(between=not lines)) is not None:
            if size == 0:
                return lines
            lines.append(self._exactly(size).decode("utf-8", "surrogateescape").removesuffix("\n"))
        return None

    def content(self) -> Content:
        """The bytes of the packets up to the flush."""
        return Content(self)

    def write_lines(self, *lines: str) -> None:
        """Text packets and the flush."""
        packets = [f"{line}\n".encode("utf-8", "surrogateescape") for line in lines]
        _write_all(self._out, [*(part for p in packets for part in (_prefix(len(p)), p)), _FLUSH])

    def write_content(self, pieces: Iterable[Bytes]) -> None:
        """Bytes and the flush; what `pieces` raises comes through, when the flush has not been sent."""
        for piece in pieces:
            view = memoryview(piece)
            parts: list[Bytes] = []
            for at in range(0, len(view), MAX_PACKET):
                packet = view[at : at + MAX_PACKET]
                parts += [_prefix(len(packet)), packet]
            _write_all(self._out, parts)
        self.flush()

    def flush(self) -> None:
        """The packet that ends a list or a content."""
        _write_all(self._out, [_FLUSH])

    def _length(self, *, between: bool = False) -> int | None:
        """Bytes that the next packet carries, 0 for a flush; None at the end, which may come only `between` lists."""
        raw = self._in.read(4)
        if not raw and between:
            return None
        try:
            size = int(raw, 16) if len(raw) == 4 and raw.isalnum() else -1
        except ValueError:
            size = -1
        if size == 0:
            return 0
        if not 4 < size <= MAX_PACKET + 4:
            raise StoreError("not a packet of git's", where="filter process", got=ascii(raw), expected="0005 to fff0")
        return size - 4

    def _exactly(self, size: int) -> bytes:
        data = self._in.read(size)
        if len(data) < size:
            raise StoreError("git stopped in the middle of a packet", where="filter process", got=f"{len(data)} bytes")
        return data

    def _into(self, view: memoryview) -> int:
        got = self._in.readinto(view)
        if not got:
            raise StoreError("git stopped in the middle of a file", where="filter process")
        return got


class Content:
    """What git sends of one file, to be read once."""

    def __init__(self, packets: Packets) -> None:
        self._packets = packets
        self._left = 0  # bytes of the packet that is being read
        self._ended = False

    def readinto(self, view: memoryview) -> int:
        """Fill some of `view`; gives how many bytes, 0 at the end."""
        if not self._left and not self._ended:
            self._left = self._packets._length() or 0
            self._ended = not self._left
        if self._ended:
            return 0
        got = self._packets._into(view[: self._left])
        self._left -= got
        return got

    def drain(self) -> None:
        """Read and drop the rest: git listens only once it has said all."""
        scrap = memoryview(bytearray(MAX_PACKET))
        while self.readinto(scrap):
            pass


def _prefix(size: int) -> bytes:
    return b"%04x" % (size + 4)


def _write_all(fd: int, parts: list[Bytes]) -> None:
    for group in _groups(parts):
        views = [memoryview(part) for part in group]
        while views:
            done = os.writev(fd, views)
            while views and done >= len(views[0]):
                done -= len(views.pop(0))
            if done:
                views[0] = views[0][done:]


def _groups(parts: list[Bytes]) -> Iterator[list[Bytes]]:
    for at in range(0, len(parts), _VECTORS):
        yield parts[at : at + _VECTORS]
