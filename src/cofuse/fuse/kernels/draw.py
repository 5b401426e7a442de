"""The draws of `fuse.methods.random`, compiled."""

from __future__ import annotations

import numpy as np

from ..methods.random import FIRST, GOLDEN, SECOND
from .compiler import compiled


@compiled
def mixed(z):  # type: ignore[no-untyped-def]
    """SplitMix64's finaliser."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(FIRST)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(SECOND)
    return z ^ (z >> np.uint64(31))


@compiled
def draw(key, start, words):  # type: ignore[no-untyped-def]
    """Fill words[: n // 2 + 1] so that the draws of n entries from `start` are their 32-bit halves from `start % 2` on."""
    first = key + (start >> np.uint64(1)) * np.uint64(GOLDEN)
    for i in range(words.size):
        words[i] = mixed(first + np.uint64(i) * np.uint64(GOLDEN))
    return start & np.uint64(1)
