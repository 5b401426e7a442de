"""Files that are almost what they should be."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

from cofuse.checkpoint.frames import frame, stated, unframe
from cofuse.patch.patch import check_of

VALUES: list[Any] = [
    *(
        None,
        True,
        -1,
        0,
        1,
        2**31,
        2**63,
        -(2**63),
        2**64,
        10**400,
        0.5,
        "",
        "x",
        "../../etc/passwd",
        "\0",
        "\ud83d",
        "é" * 300,
    ),
    *(
        [],
        {},
        [0],
        [-1],
        [2**40, 2**40],
        [[]],
        {"": ""},
        "F64",
        "F32",
        "I8",
        "BOOL",
        "edit",
        "new",
        "product",
        "0" * 64,
        "f" * 64,
    ),
]


def flipped(data: bytes, draw: random.Random) -> bytes:
    """Some bytes changed."""
    out = bytearray(data)
    for _ in range(draw.randint(1, 8)):
        out[draw.choice([draw.randrange(len(out)), draw.randrange(min(200, len(out)))])] = draw.randrange(256)
    return bytes(out)


def cut(data: bytes, draw: random.Random) -> bytes:
    """Too short, or too long."""
    at = draw.randrange(len(data))
    return draw.choice([data[:at], data + b"\0" * draw.randint(1, 64), data[at:], data[:at] + data[at + 1 :]])


def lying(data: bytes, draw: random.Random) -> bytes:
    """A header that says something else."""
    header, rest = _header(data)
    return _file(_changed(header, draw), rest)


def doubled(data: bytes, draw: random.Random) -> bytes:
    """A key that stands twice."""
    size = int.from_bytes(data[:8], "little")
    text = data[8 : 8 + size].strip().decode()
    name = draw.choice(list(json.loads(text)))
    again = json.dumps(
        {name: draw.choice([json.loads(text)[name], {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}])}
    )
    text = draw.choice([text[:-1] + "," + again[1:-1] + "}", again[:-1] + "," + text[1:]])
    return len(text.encode()).to_bytes(8, "little") + text.encode() + data[8 + size :]


def forged(data: bytes, draw: random.Random) -> bytes:
    """A patch whose manifest says something else, with the right check sum; of others, another header."""
    header, rest = _header(data)
    if "manifest" not in header:
        return lying(data, draw)
    parts = {n: rest[slice(*spot["data_offsets"])] for n, spot in header.items() if n != "__metadata__"}
    told = json.loads(unframe(parts["manifest"], stated(parts["manifest"])))
    raw = json.dumps(_changed(told, draw), sort_keys=True, separators=(",", ":")).encode("utf-8", "surrogatepass")
    parts["manifest"] = frame(raw, 1)
    if draw.random() < 0.3:
        rows = bytearray(parts["rows"])
        rows[draw.randrange(len(rows))] = draw.randrange(256)
        parts["rows"] = bytes(rows)
    metadata = {**header["__metadata__"], "check": check_of(parts["manifest"], parts["rows"])}
    made: dict[str, Any] = {"__metadata__": metadata}
    at = 0
    for name, held in parts.items():
        made[name] = {**header[name], "data_offsets": [at, at + len(held)]}
        if made[name]["dtype"] == "U8":
            made[name]["shape"] = [len(held)]
        at += len(held)
    return _file(made, b"".join(parts.values()))


WAYS: tuple[Callable[[bytes, random.Random], bytes], ...] = (flipped, cut, lying, doubled, forged)


def _header(data: bytes) -> tuple[dict[str, Any], bytes]:
    size = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def _file(header: Any, rest: bytes) -> bytes:
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    return len(text).to_bytes(8, "little") + text + rest


def _changed(document: Any, draw: random.Random) -> Any:
    """A document with one to three of its values, at any depth, replaced, removed, renamed or repeated."""
    document = json.loads(json.dumps(document))
    for _ in range(draw.randint(1, 3)):
        here = document
        while isinstance(here, dict | list) and here and draw.random() < 0.75:
            below = list(here.values()) if isinstance(here, dict) else here
            deeper = [one for one in below if isinstance(one, dict | list) and one]
            if not deeper:
                break
            here = draw.choice(deeper)
        if isinstance(here, dict) and here:
            key = draw.choice(list(here))
            act = draw.randrange(4)
            if act == 0:
                del here[key]
            elif act == 1:
                here[str(draw.choice(VALUES))] = here.pop(key)
            elif act == 2:
                here[str(draw.choice(VALUES))] = here[key]
            else:
                here[key] = draw.choice(VALUES)
        elif isinstance(here, list) and here:
            here[draw.randrange(len(here))] = draw.choice(VALUES)
    return document
