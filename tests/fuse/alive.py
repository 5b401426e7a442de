"""How many of the blocks that a function is given it keeps."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

COUNT = 20


def most_alive(function: Callable[[Iterator[Any]], object], size: int) -> int:
    """The most blocks that were alive when another one was asked for; each of `COUNT` is dropped here as it is given."""
    given: list[weakref.ref[Any]] = []
    most = 0

    def blocks() -> Iterator[Any]:
        nonlocal most
        for _ in range(COUNT):
            most = max(most, sum(ref() is not None for ref in given))
            block = np.ones(size, np.float32)
            given.append(weakref.ref(block))
            yield block
            del block

    function(blocks())
    assert len(given) == COUNT
    return most
