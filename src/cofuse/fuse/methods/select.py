"""Exact selection by magnitude over tensors that are seen a block at a time: a radix select, never a sort.

Entries are ordered by magnitude, the largest first, and of equal ones the one that stands first in the flattened tensor.
The first r entries of that order are all above a threshold, and as many of those equal to it as are still wanted, the
first in the tensor first. The threshold is found from the bits of the magnitudes, which for floats of one sign are ordered
as the numbers are: how often each value of the upper 16 bits occurs says which value holds the r-th entry; the lower
16 bits of the entries with that value, counted in the same way, say the rest (float64 takes four counts). Counts are whole
numbers, so that neither the blocks nor the threads can change the outcome.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .method import Array, Place, Scan
from .steps import Steps, steps_for

DIGIT = 16
BINS = 1 << DIGIT
# So many entries that may still be meant are held together (2 bytes each) rather than counted twice.
GATHERED = 1 << 25

Counts = npt.NDArray[np.int64]
Digits = npt.NDArray[np.uint16]
# The quantities that are selected from: for one block, an array for each, one at a time.
Values = Callable[[Iterable[Array], Array | None], Iterable[Array]]
# Which ranks are wanted of each, when it is known how many entries there are and how many of them are not zero.
Ranks = Callable[[int, list[int]], Sequence[Sequence[int]]]


@dataclass(frozen=True, slots=True)
class Cut:
    """Where the order is cut: which entries come before a rank.

    Attributes:
        value: entries of a larger magnitude do.
        block: of those of this magnitude, all that stand in an earlier block do,
        count: and so many in this one, the first ones.
    """

    value: float
    block: int
    count: int

    def until(self, values: Array, index: int, steps: Steps) -> int:
        """Before which entry of block `index` those of the cut's magnitude are taken."""
        size = math.prod(values.shape)
        if index != self.block:
            return size if index < self.block else 0
        return steps.position(values.reshape(-1), self.value, self.count)


NONE = Cut(math.inf, 0, 0)
EVERY = Cut(-1.0, 0, 0)


def cuts(scan: Scan, values: Values, ranks: Ranks) -> list[list[Cut]]:
    """The cuts at given ranks, for each quantity.

    Args:
        scan: goes over the tensor's blocks; three times for float32.
        values: makes from a block the quantities to select from, whose magnitudes count.
        ranks: which ranks are wanted of each; 0 takes nothing, and whatever lies beyond the last takes everything.

    Returns:
        For each quantity a cut at each of its ranks.
    """
    first = _Tallies()
    width = 0

    def look_first(models: Iterable[Array], base: Array | None, place: Place) -> list[tuple[int, int]]:
        nonlocal width
        sizes = []
        for lane, block in enumerate(values(models, base)):
            width = 8 * block.dtype.itemsize
            with first.counts(lane) as counts:
                steps_for(block).tally(block.reshape(-1), None, width - DIGIT, counts)
            sizes.append((math.prod(block.shape), int((block != 0).sum())))
        return sizes

    sizes = scan(look_first)
    lanes = len(sizes[0]) if sizes else 0
    total = sum(block[0][0] for block in sizes) if lanes else 0
    wanted = ranks(total, [sum(block[lane][1] for block in sizes) for lane in range(lanes)])
    searches = [
        [_Search(rank).narrowed(first.total(lane)) if 0 < rank < total else None for rank in of]
        for lane, of in enumerate(wanted)
    ]
    open_ones = [(lane, s) for lane, of in enumerate(searches) for s in of if s is not None]
    for shift in range(width - 2 * DIGIT, -1, -DIGIT) if open_ones else ():
        if shift == 0 and sum(search.equal for _, search in open_ones) <= GATHERED:
            _gather(scan, values, open_ones)
        else:
            _count(scan, values, open_ones, shift)
            if shift == 0:
                _place(scan, values, [(lane, s) for lane, s in open_ones if s.left < s.equal], width)

    def cut(search: _Search | None, rank: int) -> Cut:
        return search.cut(width) if search is not None else NONE if rank <= 0 else EVERY

    return [
        [cut(search, rank) for search, rank in zip(of, ranks_of, strict=True)]
        for of, ranks_of in zip(searches, wanted, strict=True)
    ]


class _Search:
    """The search for the entry at one rank: the leading bits of its magnitude, more of them after each count."""

    def __init__(self, rank: int) -> None:
        self.prefix = 0
        self.left = rank  # of the entries with this prefix, how many come before the rank
        self.equal = 0  # how many there are
        self.block = self.count = 0  # where the last of equal ones that are taken lie

    def narrowed(self, counts: Counts) -> _Search:
        above = np.cumsum(counts[::-1])  # entries with that digit or a larger one
        at = int(np.searchsorted(above, self.left, side="left"))
        digit = BINS - 1 - at
        self.left -= int(above[at - 1]) if at else 0
        self.equal = int(counts[digit])
        self.prefix = (self.prefix << DIGIT) | digit
        return self

    def placed(self, equal: Sequence[int]) -> None:
        """Say in which block the last one that is taken lies, by how many of this magnitude each block has."""
        until = np.cumsum(equal)
        self.block = int(np.searchsorted(until, self.left, side="left"))
        self.count = self.left - (int(until[self.block - 1]) if self.block else 0)

    def value(self, width: int) -> float:
        return float(np.array(self.prefix, f"u{width // 8}").view(f"f{width // 8}"))

    def cut(self, width: int) -> Cut:
        if self.left == self.equal:  # all of them: no block need count
            return Cut(self.value(width), np.iinfo(np.int64).max, 0)
        return Cut(self.value(width), self.block, self.count)


def _count(scan: Scan, values: Values, searches: list[tuple[int, _Search]], shift: int) -> None:
    """Narrow each search by the digit above `shift`."""
    tallies = _Tallies()

    def look(models: Iterable[Array], base: Array | None, place: Place) -> None:
        for i, block, search in _looked_for(values(models, base), searches):
            with tallies.counts(i) as counts:
                steps_for(block).tally(block.reshape(-1), search.prefix, shift, counts)

    scan(look)
    for i, (_, search) in enumerate(searches):
        search.narrowed(tallies.total(i))


def _place(scan: Scan, values: Values, searches: list[tuple[int, _Search]], width: int) -> None:
    """Find in which block those of equal magnitude that are taken end."""
    if not searches:
        return

    def look(models: Iterable[Array], base: Array | None, place: Place) -> list[int]:
        return [
            steps_for(block).count_equal(block.reshape(-1), search.value(width))
            for _, block, search in _looked_for(values(models, base), searches)
        ]

    found = scan(look)
    for i, (_, search) in enumerate(searches):
        search.placed([block[i] for block in found])


def _gather(scan: Scan, values: Values, searches: list[tuple[int, _Search]]) -> None:
    """The last count and `_place` in one scan: what few entries may still be meant are looked at afterwards."""

    def look(models: Iterable[Array], base: Array | None, place: Place) -> list[Digits]:
        return [
            steps_for(block).gather(block.reshape(-1), search.prefix)
            for _, block, search in _looked_for(values(models, base), searches)
        ]

    found = scan(look)
    for i, (_, search) in enumerate(searches):
        search.narrowed(sum((np.bincount(block[i], minlength=BINS) for block in found), np.zeros(BINS, np.int64)))
        digit = search.prefix % BINS
        search.placed([int((block[i] == digit).sum()) for block in found])


def _looked_for(blocks: Iterable[Array], searches: list[tuple[int, _Search]]) -> Iterator[tuple[int, Array, _Search]]:
    """Each search, in their order, with the block of its quantity."""
    rest = iter(enumerate(blocks))
    lane, block = -1, None
    for i, (own, search) in enumerate(searches):
        while lane < own:
            del block  # before the next one is read
            lane, block = next(rest)
        assert block is not None
        yield i, block, search


class _Tallies:
    """Counts that several threads add to: as many arrays as threads at work, summed in the end.

    Whole numbers add up to the same whatever the order.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free: dict[int, list[Counts]] = {}
        self._all: dict[int, list[Counts]] = {}

    @contextmanager
    def counts(self, key: int) -> Iterator[Counts]:
        with self._lock:
            free = self._free.setdefault(key, [])
            if not free:
                free.append(np.zeros(BINS, np.int64))
                self._all.setdefault(key, []).append(free[-1])
            own = free.pop()
        yield own
        with self._lock:
            free.append(own)

    def total(self, key: int) -> Counts:
        return sum(self._all.get(key, ()), np.zeros(BINS, np.int64))
