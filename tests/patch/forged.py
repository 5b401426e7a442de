"""Patch files made by hand, as the format's description says and as it does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import zstandard
from blake3 import blake3

BASE = "4d6f2b" + 58 * "0"


def manifest(**changes: Any) -> dict[str, Any]:
    """A manifest of a patch that changes nothing."""
    return {"base": BASE, "made": "by hand", "result": BASE, "tuned": BASE, **changes}


def spelled(document: Any) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def write(
    path: Path,
    document: Any,
    chunks: list[tuple[int, int, bytes]] | None = None,
    *,
    metadata: dict[str, str] | None = None,
    frame: bytes | None = None,
    rows: bytes | None = None,
    data: bytes | None = None,
    parts: dict[str, tuple[str, list[int], bytes]] | None = None,
) -> Path:
    """A patch file with this manifest and these chunks; the rest replaces what would follow from them."""
    chunks = chunks or []
    frame = zstandard.ZstdCompressor().compress(spelled(document)) if frame is None else frame
    if rows is None:
        rows = b"".join(
            bytes([where, what, 0, 0]) + len(d).to_bytes(4, "little") + blake3(d).digest(length=8)
            for where, what, d in chunks
        )
    data = b"".join(d for _, _, d in chunks) if data is None else data
    if metadata is None:
        metadata = {"check": blake3(frame + rows).hexdigest(), "cofuse.patch": "1"}
    own = {
        "chunks": ("U8", [len(data)], data),
        "manifest": ("U8", [len(frame)], frame),
        "rows": ("U8", [len(rows)], rows),
    }
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    at, body = 0, b""
    for name, (dtype, shape, held) in {**(parts or {}), **own}.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(held)]}
        at, body = at + len(held), body + held
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)
    return path
