"""JSON that a store keeps: one spelling for one value, and no other is read."""

from __future__ import annotations

import json
from typing import Any

from ..canonical import canonical as spelled
from ..errors import CorruptError, StoreError


def canonical(value: object, what: str) -> bytes:
    r"""The one spelling of a value, see `cofuse.canonical`.

    Raises:
        StoreError: the value is not JSON, or would not be read back as it is.

    >>> canonical({"b": 1, "a": [None, 0.5, "é"]}, "record")
    b'{"a":[null,0.5,"\\u00e9"],"b":1}'
    """
    try:
        # json turns a key that is a number into a string without a word.
        _check_keys(value)
        return spelled(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise StoreError(f"the {what} cannot be kept as JSON", got=str(error)[:160]) from None


def parse_canonical(raw: bytes | bytearray, where: str) -> Any:
    """Read what `canonical` wrote.

    Raises:
        CorruptError: it is anything else; two spellings of one value would have two ids.
    """
    try:
        value = json.loads(bytes(raw))
        same = canonical(value, "object") == raw
    except (ValueError, RecursionError, StoreError) as error:
        raise CorruptError("not JSON", where=where, got=str(error)[:80]) from None
    if not same:
        raise CorruptError("not in its canonical form", where=where)
    return value


def _check_keys(value: object) -> None:
    if isinstance(value, dict):
        for key, below in value.items():
            if not isinstance(key, str):
                raise TypeError(f"the key {key!r} is not a string")
            _check_keys(below)
    elif isinstance(value, list | tuple):
        for below in value:
            _check_keys(below)
