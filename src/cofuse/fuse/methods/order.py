"""Order statistics of the models, entry by entry: the median and the trimmed mean."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

import array_api_compat

from .linear import linear
from .method import Array


def median(models: Iterable[Array], base: Array | None) -> Array:
    """The median over the models of each entry.

        out_j = med_i(t_ij),   the mean of the two middle ones for an even number of models

    Args:
        models: one block of each model; all are held at once.
        base: not used.

    Returns:
        An array of that shape and dtype. As numpy's median; torch's takes the lower of two middle ones.

    Source: Byzantine-robust distributed learning, Yin et al., arXiv 1803.01498, definition 1.

    >>> import numpy as np
    >>> median([np.array([1.0]), np.array([9.0]), np.array([2.0])], None)
    array([2.])
    """
    held = list(models)
    return _mean_between(held, (len(held) - 1) // 2)


def trimmed_mean(models: Iterable[Array], base: Array | None, *, trim: float = 0.2) -> Array:
    """The mean over the models of each entry, without the largest and the smallest ones.

        out_j = mean of t_(k+1)j ... t_(N-k)j in their order,   k = floor(trim N)

    Args:
        models: one block of each model; all are held at once.
        base: not used.
        trim: the share cut at each end, in [0, 1/2]; no unit. One or two are always left: 1/2 gives the median.

    Returns:
        An array of that shape and dtype. The paper's share times N is whole; here it is rounded down, as in scipy's
        `trim_mean`.

    Source: Byzantine-robust distributed learning, Yin et al., arXiv 1803.01498, definition 2.

    >>> import numpy as np
    >>> trimmed_mean([np.array([float(x)]) for x in (1, 2, 4, 900)], None, trim=0.25)
    array([3.])
    """
    held = list(models)
    cut = int(trim * len(held) + 1e-9)  # 0.29 x 100 is 28.999999999999996
    return _mean_between(held, min(cut, (len(held) - 1) // 2))


def _mean_between(held: list[Array], cut: int) -> Array:
    """The mean of what is left when `cut` are taken off both ends; overwrites the blocks."""
    xp: Any = array_api_compat.array_namespace(*held)
    wanted = frozenset(range(cut, len(held) - cut))
    spare = xp.empty_like(held[0])
    for low, high in comparators(len(held), wanted if cut else frozenset()):
        xp.minimum(held[low], held[high], out=spare)
        xp.maximum(held[low], held[high], out=held[high])
        held[low], spare = spare, held[low]
    middle = held[cut : len(held) - cut]
    return linear(middle, None, weight=[1.0] * len(middle))


@cache
def comparators(count: int, wanted: frozenset[int]) -> tuple[tuple[int, int], ...]:
    """Pairs (low, high) of `count` wires which, put in order in turn, have the right values on the wanted ones.

    Each pair is a minimum and a maximum of whole blocks, so no entry is branched on. Batcher's odd-even merge sort,
    less the comparators that no wanted wire depends on.

    Source: Batcher, Sorting networks and their applications, 1968; Knuth, vol. 3, sec. 5.2.2, algorithm M.

    >>> comparators(3, frozenset({1}))
    ((0, 2), (0, 1), (1, 2))
    """
    kept = []
    needed = set(wanted)
    for low, high in reversed(list(_batcher(count))):
        if low in needed or high in needed:
            needed |= {low, high}
            kept.append((low, high))
    return tuple(reversed(kept))


def _batcher(count: int) -> Iterator[tuple[int, int]]:
    top = 1 << max(0, (count - 1).bit_length() - 1)
    p = top
    while p > 0:
        q, r, d = top, 0, p
        while True:
            yield from ((i, i + d) for i in range(count - d) if i & p == r)
            if q == p:
                break
            d, q, r = q - p, q // 2, p
        p //= 2
