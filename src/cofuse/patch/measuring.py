"""How large a change is, and what an approximate patch leaves of it: sums over a tensor's chunks, in float64."""

from __future__ import annotations

import math
import threading
from typing import NamedTuple

import numpy as np

from ..checkpoint.floats import FLOATS, Array, as_floats
from .manifest import up

Bytes = bytes | bytearray | memoryview


class Sums(NamedTuple):
    """Of a stretch: sum (tuned - base)^2, sum base^2, sum (tuned - result)^2, max |tuned - result|."""

    norm: float = 0.0
    base: float = 0.0
    left: float = 0.0
    most: float = 0.0


def sums(base: Bytes | None, tuned: Bytes, result: Bytes, dtype: str) -> Sums:
    """The sums of a stretch of a tensor; NaN where a value is not finite, or the kind of number has no norm."""
    if dtype not in FLOATS:
        return Sums(math.nan, math.nan)
    with np.errstate(all="ignore"):
        after = as_floats(np.frombuffer(tuned, np.uint8), dtype, np.float64)
        change = size = math.nan
        if base is not None:
            before = as_floats(np.frombuffer(base, np.uint8), dtype, np.float64)
            size = _square(before)
            before = after - before
            change = _square(before)
        if result is tuned:
            return Sums(change, size)
        rest = after - as_floats(np.frombuffer(result, np.uint8), dtype, np.float64)
        return Sums(change, size, _square(rest), float(np.abs(rest).max(initial=0)))


def _square(values: Array) -> float:
    return float(np.square(values).sum())


class Measured:
    """The sums of every chunk, in any order, by any threads."""

    def __init__(self) -> None:
        self._found: dict[str, dict[int, Sums]] = {}
        self._lock = threading.Lock()

    def add(self, name: str, number: int, found: Sums) -> None:
        """Of one chunk; a second time in place of the first."""
        with self._lock:
            self._found.setdefault(name, {})[number] = found

    def of(self, name: str) -> dict[str, float | None]:
        """What the manifest says of a tensor."""
        # fsum: what comes out does not depend on the order.
        norm, base, left = (math.sqrt(math.fsum(s[i] for s in self._parts(name))) for i in range(3))
        most = max((s.most for s in self._parts(name)), default=0.0)
        return {"norm": up(norm), "base": up(base), "left": up(left), "most": up(most)}

    def _parts(self, name: str) -> list[Sums]:
        return list(self._found.get(name, {}).values())
