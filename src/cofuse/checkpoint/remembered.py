"""Tensor ids of files that were hashed before, remembered by what the file system says of them.

A file is taken for the same while its place, size, inode and both of its times are, as git does for its index. Times
have a grain, so what changed in the last two seconds is not remembered. The folder may be deleted at any time.

Whoever tries recipes fuses the same models again and again: four of 1 GB cost 0.5 s of a core to hash, and a fuse of
them 1.6 s.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from blake3 import blake3

from .checkpoint import Checkpoint
from .disk import SafetensorsFile, Shards
from .hashed import Hashed
from .identity import file_id_at

_ID = re.compile(r"[0-9a-f]{64}")
_GRAIN_NS = 2_000_000_000
_LARGE = 1 << 20  # bytes; smaller files are hashed sooner than looked up


class Remembered:
    """A folder of remembered ids, one file for each checkpoint on disk.

    Args:
        folder: where; made when first written to. It need not be writable: what cannot be kept is hashed again.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._watched: list[tuple[Hashed, str]] = []

    def watch(self, checkpoint: Checkpoint) -> Hashed:
        """The checkpoint with its ids: those remembered, and those that are found while it is read."""
        stamp = stamp_of(checkpoint)
        if stamp is None:
            return Hashed(checkpoint)
        hashed = Hashed(checkpoint, known=self._ids(stamp, checkpoint.names()))
        self._watched.append((hashed, stamp))
        return hashed

    def keep(self) -> None:
        """Remember what was found out of the tensors that were read; nothing of files that changed since `watch`."""
        for hashed, stamp in self._watched:
            if _lasts(stamp, stamp_of(hashed.checkpoint)):
                known = self._ids(stamp, hashed.checkpoint.names())
                ids = {**known, **hashed.tensor_ids(hashed.used()), **hashed.known_ids()}
                if ids != known:
                    self._write(stamp, ids)

    def file_id(self, path: Path) -> str:
        """The id of any file, remembered where it is a large one.

        Raises:
            CheckpointError: it cannot be read.
        """
        stamp = _stamp([path])
        size = os.path.getsize(path) if stamp is not None else 0
        known = self._ids(stamp, ["file"]) if stamp is not None and size >= _LARGE else {}
        if not known:
            known = {"file": file_id_at(path)}
            if stamp is not None and size >= _LARGE and _lasts(stamp, _stamp([path])):
                self._write(stamp, known)
        return known["file"]

    def _ids(self, stamp: str, names: Iterable[str]) -> dict[str, str]:
        try:
            found = json.loads(self._place(stamp).read_bytes())
        except (OSError, ValueError, RecursionError):
            return {}
        if not isinstance(found, dict) or found.get("stamp") != stamp or not isinstance(found.get("ids"), dict):
            return {}
        ids: dict[str, str] = found["ids"]
        whole = all(isinstance(i, str) and _ID.fullmatch(i) for i in ids.values())
        return ids if whole and ids.keys() <= set(names) else {}

    def _write(self, stamp: str, ids: dict[str, str]) -> None:
        place = self._place(stamp)
        temporary = place.with_name(f".{place.name}.{secrets.token_hex(4)}")
        with suppress(OSError):  # a home that cannot be written to
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                temporary.write_text(json.dumps({"stamp": stamp, "ids": ids}, sort_keys=True), encoding="utf-8")
                os.replace(temporary, place)
            finally:
                temporary.unlink(missing_ok=True)

    def _place(self, stamp: str) -> Path:
        return self.folder / f"{blake3(stamp.encode()).hexdigest()[:32]}.json"


def stamp_of(checkpoint: Checkpoint) -> str | None:
    """What the file system says of a checkpoint's files; None for what is not plain safetensors files on disk."""
    files: list[SafetensorsFile]
    if isinstance(checkpoint, SafetensorsFile):
        files = [checkpoint]
    elif isinstance(checkpoint, Shards):
        files = list(checkpoint.shards.values())
    else:
        return None
    return _stamp([file.path for file in files])


def _stamp(paths: Iterable[Path]) -> str | None:
    rows = []
    for place in paths:
        path = os.path.realpath(place)
        try:
            stat = os.stat(path)
        except OSError:
            return None
        rows.append([path, stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns])
    return json.dumps(rows)


def _lasts(stamp: str, now: str | None) -> bool:
    """Whether nothing changed between two looks, and nothing can have changed without showing."""
    newest = max(int(time_ns) for row in json.loads(stamp) for time_ns in row[-2:])
    return stamp == now and time.time_ns() - newest >= _GRAIN_NS
