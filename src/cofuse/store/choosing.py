"""Beside which object another is kept as a delta: decided once, at the first chunk in which they differ."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from blake3 import blake3

from ..checkpoint import CHUNK
from ..errors import StoreError
from .codecs import CODECS, SAME, Beside, Bytes, lowrank, probed, smallest
from .envelope import NOTHING_SHARED, Envelope, Head, Row, Shared
from .objects import Objects, fitted

MAX_DEPTH = 4  # deltas between what is written and what is kept whole: docs/results/store.md says why four

Piece = tuple[int, Bytes, bytes | None]  # number of the chunk, its bytes, their BLAKE3 where it is known


class Against:
    """A base, as the chunks of another object are kept beside it.

    Args:
        objects: where the base is.
        base: its id.
        head: of the object that becomes a delta.

    Raises:
        StoreError: the base is missing, damaged, or of another kind.
    """

    def __init__(self, objects: Objects, base: str, head: Head) -> None:
        self.base = base
        self.shared = b""
        self._objects = objects
        self._head = head
        self._envelope = objects.envelope(base, head.kind)
        self._first: tuple[int, Bytes] | None = None

    @property
    def depth(self) -> int:
        """The length of the chain of an object that is a delta against this one."""
        return 1 + len(self._objects.bases(self.base))

    @property
    def fits(self) -> bool:
        """Whether elements are as wide as the base's."""
        return self._envelope.head.width == self._head.width

    def has(self, k: int, digest: bytes) -> bool:
        """Whether chunk `k` of the base is the one with this digest."""
        return k < len(self._envelope.rows) and self._envelope.rows[k].digest == digest

    def pieces(self, count: int) -> Iterator[Piece]:
        """The first chunks of the base."""
        with self._objects.opened(self.base, self._head.kind) as found:
            for k in range(count):
                yield k, found.chunk(k), self._envelope.rows[k].digest

    def beside(self, k: int, size: int) -> Beside:
        """What chunk `k`, of so many bytes, is kept beside."""
        first = self._first
        if first is not None and first[0] == k:
            self._first = None
            return Beside(first[1], k * CHUNK, self.shared, self._head.spec)
        with self._objects.opened(self.base, self._head.kind, level=1) as found:
            return Beside(fitted(found, k, size, found.chunk), k * CHUNK, self.shared, self._head.spec)

    def probe(self, k: int, data: Bytes) -> float:
        """About how many bytes chunk `k` takes beside the base, over how many it has."""
        beside = self.beside(k, len(data))
        self._first = k, beside.data  # it will be wanted again, by whoever keeps the chunk
        return probed(data, self._head.width, beside)

    def look(self, k: int, data: Bytes) -> None:
        """See from one chunk whether the whole change is of low rank."""
        if self._head.width > 1:
            beside = self.beside(k, len(data))
            self.shared = lowrank.shared(data, self._head.width, beside)
            self._first = k, beside.data


def best(objects: Objects, candidates: Sequence[str], head: Head, k: int, data: Bytes, bound: int) -> Against | None:
    """The candidate beside which chunk `k` takes the fewest bytes, by a probe; None when none of them is of use.

    A chain that is at its bound is not made longer: its end, which is kept whole, stands in for it.
    """
    found: dict[str, tuple[float, Against]] = {}
    for candidate in candidates:
        try:
            against = Against(objects, candidate, head)
            if against.depth > bound:
                against = Against(objects, objects.bases(candidate)[-1], head)
            if against.fits and against.base not in found:
                found[against.base] = against.probe(k, data), against
        except StoreError:
            continue  # a damaged guess is no reason not to keep good bytes
    if not found:
        return None
    chosen = min(found.values(), key=lambda pair: pair[0])[1]
    chosen.look(k, data)
    return chosen


def coded(head: Head, against: Against | None, piece: Piece) -> tuple[Row, bytes]:
    """A chunk as it is kept."""
    k, data, known = piece
    digest = known or blake3(data).digest()
    if against is not None and against.has(k, digest):
        return Row.of(digest, SAME, b""), b""
    beside = None
    if against is not None:
        with contextlib.suppress(StoreError):  # a damaged base is no reason not to keep good bytes
            beside = against.beside(k, len(data))
    codec, stored = smallest(data, head.width, beside)
    return Row.of(digest, codec, stored), stored


def kept(head: Head, rows: Sequence[Row], against: Against | None) -> tuple[Envelope, bytes]:
    """The envelope of chunks that are kept like this, and what they share; a whole object's where none needs the base."""
    if against is None or not any(CODECS[row.codec].delta for row in rows):
        return Envelope.of(head, rows), b""
    shared = Shared(blake3(against.shared).digest(), len(against.shared)) if against.shared else NOTHING_SHARED
    return Envelope.of(head, rows, against.base, shared), against.shared
