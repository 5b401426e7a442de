"""The SHA-256 of a file, which Hugging Face clients ask for: computed when first asked for, and remembered.

`cache/` in the store's folder holds only what can be made again; whoever removes it loses time.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

from blake3 import blake3

from .objects import Objects
from .trees import Plain, Weights
from .workers import Workers

_LINE = re.compile(rb"([0-9a-f]{64}) ([0-9a-f]{64})\n")
_THREADS = 2  # one chunk is read, and verified, while another is hashed: SHA-256 is one long chain


def file_sha256(objects: Objects, entry: Plain | Weights) -> str:
    """The SHA-256 of a file of a tree, as 64 hex digits.

    Args:
        objects: where its parts are.
        entry: the file.

    Raises:
        CorruptError: a part is missing or damaged.
    """
    found = known_sha256(objects, entry)
    if found is None:
        digest = hashlib.sha256()
        workers = Workers(_THREADS)
        try:
            for chunk in workers.in_order(lambda spot: _chunk(objects, *spot), _spots(objects, _parts(entry))):
                digest.update(chunk)
        finally:
            workers.close()
        found = digest.hexdigest()
        note_sha256(objects, entry, found)
    return found


def known_sha256(objects: Objects, entry: Plain | Weights) -> str | None:
    """The SHA-256 of a file of a tree, where it is remembered."""
    return _remembered(*_place(objects, entry))


def note_sha256(objects: Objects, entry: Plain | Weights, found: str) -> None:
    """Remember the SHA-256 of a file of a tree, by whoever has read all of it."""
    with contextlib.suppress(OSError):  # a store that can only be read, or a full disk: the answer stands
        _remember(*_place(objects, entry), found)


def _parts(entry: Plain | Weights) -> tuple[str, ...]:
    return (entry.id,) if isinstance(entry, Plain) else (entry.header, *entry.tensors)


def _place(objects: Objects, entry: Plain | Weights) -> tuple[Path, str]:
    key = blake3("\n".join(["cofuse sha256 1", *_parts(entry)]).encode()).hexdigest()
    return objects.places.root / "cache" / "sha256" / key[:2] / key[2:], key


def _spots(objects: Objects, parts: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    return ((part, k) for part in parts for k in range(objects.envelope(part).head.chunks))


def _chunk(objects: Objects, object_id: str, k: int) -> bytes | bytearray | memoryview:
    with objects.opened(object_id) as opened:
        return opened.chunk(k)


def _remembered(place: Path, key: str) -> str | None:
    """What was written down, unless it is damaged."""
    with contextlib.suppress(OSError):
        match = _LINE.fullmatch(place.read_bytes()[:200])
        if match is not None and match[2].decode() == _check(key, match[1].decode()):
            return match[1].decode()
    return None


def _remember(place: Path, key: str, found: str) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = place.with_name(f"{place.name}.{secrets.token_hex(4)}")
    temporary.write_text(f"{found} {_check(key, found)}\n")
    os.replace(temporary, place)


def _check(key: str, found: str) -> str:
    return blake3(f"{key} {found}".encode()).hexdigest()
