"""Safetensors files written by hand, well formed or not."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cofuse.checkpoint import Header, parse_header


def prefixed(text: bytes | str) -> bytes:
    """A header's JSON with its eight bytes of length."""
    raw = text.encode() if isinstance(text, str) else text
    return len(raw).to_bytes(8, "little") + raw


def entry(dtype: str = "F32", shape: Any = (2,), start: Any = 0, end: Any = 8) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


def parse(header: Mapping[str, Any] | str | bytes, data_bytes: int = 8) -> Header:
    text = header if isinstance(header, str | bytes) else json.dumps(header)
    return parse_header(prefixed(text), data_bytes=data_bytes, where="here")


def write(path: Path, header: Mapping[str, Any] | str | bytes, data: bytes = bytes(8)) -> Path:
    text = header if isinstance(header, str | bytes) else json.dumps(header)
    path.write_bytes(prefixed(text) + data)
    return path


def many(count: int, member: str = '"t%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}', before: str = "") -> bytes:
    """A header of `count` tensors without bytes, each spelled like `member`."""
    return prefixed("{" + before + ",".join(member % i for i in range(count)) + "}")


# Headers below 1 MiB that cost a reader the most for their size. None has any tensor bytes.
_ONE = '"x":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
COSTLY: dict[str, Any] = {
    "many tensors": lambda n: many(n // 57),
    "other spelling": lambda n: many(n // 66, '"t%d" : {"shape" : [ 0 ], "data_offsets":[0,0],"dtype":"U8"}'),
    "many dimensions": lambda n: many(
        n // 184, f'"t%d":{{"dtype":"U8","shape":[{",".join(["0"] * 64)}],"data_offsets":[0,0]}}'
    ),
    "long names": lambda n: many(n // 1080, f'"{"n" * 1010}%d":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'),
    "many metadata": lambda n: many(
        1, before='"__metadata__":{' + ",".join(f'"{i}":"{"m" * (n // 95_000 - 11)}"' for i in range(95_000)) + "},"
    ),
    "long metadata": lambda n: prefixed('{"__metadata__":{"a":"' + "m" * (n - 100) + '"},' + _ONE + "}"),
    "escapes": lambda n: prefixed('{"__metadata__":{"a":"' + "\\n" * (n // 2 - 100) + '"},' + _ONE + "}"),
    "unicode escapes": lambda n: prefixed(
        '{"__metadata__":{"a":"' + "\\ud83d\\ude00" * (n // 12 - 20) + '"},' + _ONE + "}"
    ),
    "wide characters": lambda n: many(n // 58, before='"__metadata__":{"a":"\U0001f600"},'),
    "spaces": lambda n: prefixed("{" + _ONE + "}" + " " * (n - 100)),
    "open brackets": lambda n: prefixed('{"x":' + "[" * (n - 10)),
    "open objects": lambda n: prefixed('{"x":' * (n // 5)),
    "brackets in shape": lambda n: prefixed('{"x":{"dtype":"U8","shape":' + "[" * (n - 40)),
    "open string": lambda n: prefixed('{"' + "n" * (n - 10)),
    "many digits": lambda n: prefixed('{"x":{"dtype":"U8","shape":[' + "1" * (n - 40) + '],"data_offsets":[0,0]}}'),
    "commas": lambda n: prefixed("{" + "," * (n - 10)),
    "not an object": lambda n: prefixed("[" * n),
}
