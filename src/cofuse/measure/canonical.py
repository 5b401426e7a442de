"""One spelling of what is hashed."""

from __future__ import annotations

import json
from typing import Any

from blake3 import blake3


def digest(kind: str, **said: Any) -> str:
    """BLAKE3 over the canonical JSON (sorted keys, no spaces, ASCII) of a kind and all that decides a result.

    >>> digest("x", a=1, b=[2]) == digest("x", b=[2], a=1) != digest("x", a=1, b=[3])
    True
    """
    text = json.dumps([kind, said], sort_keys=True, separators=(",", ":"), allow_nan=False)
    return blake3(text.encode()).hexdigest()
