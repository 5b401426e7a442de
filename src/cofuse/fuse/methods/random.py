"""Random numbers by counter: what is drawn for an entry depends on where it stands, never on who drew before it.

A stream belongs to (seed, tensor, model); entry i of the flattened tensor gets the i-th 32 bits of it. SplitMix64's
finaliser makes 64 bits at a time, so that two entries share one:

    z = key + (i // 2) * 0x9E3779B97F4A7C15
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;  z = (z ^ (z >> 27)) * 0x94D049BB133111EB;  z = z ^ (z >> 31)

(all modulo 2^64); an even i takes the lower half and an odd i the upper one.

Source: Steele, Lea, Flood: Fast splittable pseudorandom number generators, OOPSLA 2014, fig. 13, with the constants of
Vigna's splitmix64.c.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Any

import array_api_compat

GOLDEN = 0x9E3779B97F4A7C15
FIRST = 0xBF58476D1CE4E5B9
SECOND = 0x94D049BB133111EB
RANGE = 1 << 32  # draws lie in [0, RANGE)


@lru_cache(maxsize=4096)
def stream(seed: int, tensor: str, model: int) -> int:
    """The 64-bit key of a stream: BLAKE2b of seed, model and the tensor's name.

    >>> stream(0, "a.weight", 0) == stream(0, "a.weight", 0) != stream(0, "a.weight", 1)
    True
    """
    # The name comes last and the numbers have fixed ends, so that no two triples spell the same bytes.
    text = f"cofuse mask\n{seed}\n{model}\n{tensor}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def draws(key: int, start: int, like: Any) -> Any:
    """What a stream holds for the entries start, start + 1, ... of a tensor: one for each entry of a block.

    Args:
        key: the stream's.
        start: the block's first entry, counted over the flattened tensor.
        like: the block; gives the count, the shape, and where the draws are made (numpy or torch).

    Returns:
        Whole numbers in [0, 2^32), as int64, in the block's shape.

    >>> import numpy as np
    >>> both = draws(7, 10, np.zeros(6))
    >>> bool((both[3:] == draws(7, 13, np.zeros(3))).all())
    True
    """
    xp = array_api_compat.array_namespace(like)
    count = int(array_api_compat.size(like) or 0)
    first, last = start // 2, (start + count + 1) // 2
    # int64, whose products wrap as uint64's do: torch has few operations on uint64. Shifts to the right must not bring the
    # sign along, so what they bring is masked off.
    z = xp.arange(first, last, dtype=xp.int64, device=array_api_compat.device(like))
    z = z * _signed(GOLDEN) + xp.asarray(_signed(key), dtype=xp.int64, device=array_api_compat.device(like))
    z = (z ^ _shifted(z, 30)) * _signed(FIRST)
    z = (z ^ _shifted(z, 27)) * _signed(SECOND)
    z = z ^ _shifted(z, 31)
    halves = xp.stack([z & (RANGE - 1), _shifted(z, 32)], axis=-1)
    skipped = start - 2 * first
    return xp.reshape(xp.reshape(halves, (-1,))[skipped : skipped + count], like.shape)


def limit(probability: float) -> int:
    """How many of the 2^32 draws count as an event of this probability: a draw below it is one.

    >>> limit(0.5) == RANGE // 2, limit(2.0) == RANGE
    (True, True)
    """
    return min(max(round(probability * RANGE), 0), RANGE)


def _shifted(z: Any, by: int) -> Any:
    return (z >> by) & ((1 << (64 - by)) - 1)


def _signed(word: int) -> int:
    """64 bits as a signed number."""
    return word - (1 << 64) if word >> 63 else word
