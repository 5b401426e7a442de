"""Where a page of a list begins, for lists in order of a time: the time and the number of the last one before it."""

from __future__ import annotations

import math
from typing import Annotated

from fastapi import Query

from ..api.values import LARGEST

After = Annotated[str, Query(max_length=60)]


def mark(at: float, number: int) -> str:
    """A place, as an address says it.

    >>> read_mark(mark(1.5, 7))
    (1.5, 7)
    """
    return f"{at!r}~{number}"


def read_mark(said: str) -> tuple[float, int] | None:
    """A place from an address; None for what is none.

    >>> read_mark("nan~1"), read_mark("1e9~99999999999"), read_mark("x"), read_mark("")
    (None, None, None, None)
    """
    at, _, number = said.partition("~")
    try:
        found = float(at), int(number)
    except ValueError:
        return None
    return found if math.isfinite(found[0]) and 0 <= found[1] <= LARGEST else None
