"""One spelling of what is hashed: JSON with sorted keys, no spaces, ASCII only."""

from __future__ import annotations

import json
from typing import Any

from blake3 import blake3


def canonical(value: object) -> bytes:
    r"""The one spelling of a value.

    Raises:
        TypeError: it is not JSON.
        ValueError: so is NaN or infinity in it.

    >>> canonical({"b": 1, "a": [None, 0.5, "é"]})
    b'{"a":[null,0.5,"\\u00e9"],"b":1}'
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def digest(kind: str, **said: Any) -> str:
    """BLAKE3 over the canonical JSON of a kind and all that decides a result.

    >>> digest("x", a=1, b=[2]) == digest("x", b=[2], a=1) != digest("x", a=1, b=[3])
    True
    """
    return blake3(canonical([kind, said])).hexdigest()
