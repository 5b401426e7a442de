"""The long-running filter: one process turns all files of a git command into manifests, or back.

Source: git's Documentation/gitattributes.txt, "Long Running Filter Process", version 2. The capability `delay` is left
out: it lets a filter work on several files at once, and one file keeps all processors busy already.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from ...errors import CofuseError, StoreError
from ..codecs import Bytes
from .cleaning import ReadInto, clean
from .manifest import MAX_MANIFEST, Manifest
from .pktline import Packets
from .repository import Repository
from .sharing import ensure
from .smudging import smudge

_PIECE = 1 << 20
_IN_MEMORY = 32 << 20


class Filter:
    """What both kinds of filter do with one file, and what is asked of git once.

    Args:
        repository: whose files they are.
        smudges: whether manifests become files; if not, they are handed out as they are.
    """

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._smudges = repository.flag("cofuse.smudge", True)

    def clean(self, path: str, readinto: ReadInto) -> Iterable[Bytes]:
        """What git shall keep of a file."""
        try:
            size = Path(path).stat().st_size  # git runs filters at the top of the working folder
        except (OSError, ValueError):
            size = None
        # The index first: what is added again and again differs little from time to time.
        like = self._repository.trees(f":{path}", f"HEAD:{path}")
        return [clean(self._repository.store, readinto, size=size, like=like, where=path)]

    def smudge(self, path: str, readinto: ReadInto) -> Iterable[Bytes]:
        """What belongs into the working folder."""
        start = bytes(_filled(readinto, MAX_MANIFEST + 1))
        manifest = Manifest.parse(start, path) if self._smudges else None
        if manifest is None:
            return _as_it_is(start, readinto)
        ensure(self._repository, [manifest])
        return smudge(self._repository.store, manifest, where=path)


def serve(packets: Packets, made: Callable[[], Filter]) -> None:
    """Talk to git until it closes its end. An error of one file is git's to judge; the next file is served.

    Raises:
        StoreError: whoever is there speaks another protocol.
    """
    if packets.read_lines() != ["git-filter-client", "version=2"]:
        raise StoreError(
            "not called by git", where="filter process", hint="git runs it by itself, after: cofuse git install"
        )
    packets.write_lines("git-filter-server", "version=2")
    packets.read_lines()
    packets.write_lines("capability=clean", "capability=smudge")
    filters = made()
    works = {"clean": filters.clean, "smudge": filters.smudge}
    while (lines := packets.read_lines()) is not None:
        told = dict(line.split("=", 1) for line in lines if "=" in line)
        _one(packets, works, told.get("command", ""), told.get("pathname", ""))


def _one(
    packets: Packets, works: Mapping[str, Callable[[str, ReadInto], Iterable[Bytes]]], command: str, path: str
) -> None:
    content, answered = packets.content(), False
    try:
        if command not in works:
            raise StoreError("git asked for what was not offered", where=path, got=ascii(command))
        pieces = iter(works[command](path, content.readinto))
        first = next(pieces, b"")  # what can be wrong at all is mostly known by now
        content.drain()
        packets.write_lines("status=success")
        answered = True
        packets.write_content(_again(first, pieces))
        packets.flush()  # the status stays
    except CofuseError as error:
        print(f"cofuse: {path}: {error}", file=sys.stderr, flush=True)
        if answered:
            packets.flush()
        else:
            content.drain()
        packets.write_lines("status=error")


def _again(first: Bytes, pieces: Iterable[Bytes]) -> Iterable[Bytes]:
    yield first
    yield from pieces


def _filled(readinto: ReadInto, size: int) -> bytearray:
    data = bytearray(size)
    view, at = memoryview(data), 0
    while at < size and (got := readinto(view[at:])):
        at += got
    view.release()
    del data[at:]
    return data


def _as_it_is(start: bytes, readinto: ReadInto) -> Iterable[Bytes]:
    """A file from before the filter, or a manifest to look at. All is read first: who writes to git must have listened."""
    with tempfile.SpooledTemporaryFile(_IN_MEMORY) as spool:
        spool.write(start)
        while data := _filled(readinto, _PIECE):
            spool.write(data)
        spool.seek(0)
        while data := bytearray(spool.read(_PIECE)):
            yield data
