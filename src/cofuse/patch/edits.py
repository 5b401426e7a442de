"""What a patch does to one chunk of a tensor, bit for bit: where, what, and how that is written.

    where   all elements, or positions: by gaps in Rice codes, or as a bitmap
    what    put      the new bits
            add      what to add to the element's place among all numbers of its kind, modulo their count
            xor      which bits to flip

Each chunk takes the pair that is shortest: few changes are gaps, changes in runs (rows of an embedding) a bitmap; a small
change of a float adds a small integer. Written down in docs/formats/patch.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..checkpoint.bitcode import (
    Bits,
    Positions,
    from_planes,
    ordered,
    planes,
    rice,
    unordered,
    unrice,
    unzigzag,
    varint,
    zigzag,
)
from ..checkpoint.frames import LEVEL, entropy_frame, frame, unframe

ALL, GAPS, BITMAP = 0, 1, 2
PUT, ADD, XOR = 0, 1, 2
SAMPLE = 65_536  # values that decide between put, add and xor


class What(NamedTuple):
    """How new bits follow from the old ones and a value.

    Attributes:
        value: of old and new bits.
        play: the new bits, of the old and the value.
        then: the one value that does what two in turn do.
        back: the value that undoes one; None where that needs the old bits.
    """

    value: Callable[[Bits, Bits, str], Bits]
    play: Callable[[Bits, Bits, str], Bits]
    then: Callable[[Bits, Bits], Bits]
    back: Callable[[Bits], Bits] | None


# Numbers are written into files: one is never used for something else. The value 0 changes nothing, but for put.
WHATS: dict[int, What] = {
    PUT: What(lambda old, new, kind: new, lambda old, v, kind: v, lambda v, w: w, None),
    ADD: What(
        lambda old, new, kind: zigzag(ordered(new, kind) - ordered(old, kind)),
        lambda old, v, kind: unordered(ordered(old, kind) + unzigzag(v), kind),
        lambda v, w: zigzag(unzigzag(v) + unzigzag(w)),
        lambda v: zigzag(-unzigzag(v)),
    ),
    XOR: What(lambda old, new, kind: old ^ new, lambda old, v, kind: old ^ v, lambda v, w: v ^ w, lambda v: v),
}


@dataclass(frozen=True, slots=True, eq=False)
class Edit:
    """What changes of a chunk.

    Attributes:
        what: PUT, ADD or XOR.
        positions: which elements, rising; None for all of them.
        values: one each.
    """

    what: int
    positions: Positions | None
    values: Bits

    def play(self, old: Bits, dtype: str) -> Bits:
        """The chunk's new bits; `old` is unused where all of it is put."""
        play = WHATS[self.what].play
        if self.positions is None:
            return play(old, self.values, dtype)
        new = old.copy()
        new[self.positions] = play(old[self.positions], self.values, dtype)
        return new


class Coded(NamedTuple):
    """An edit as it is written: two numbers of the chunk's row, and its bytes; none where nothing changes."""

    where: int
    what: int
    data: bytes


SAME = Coded(ALL, PUT, b"")


def shortest(old: Bits | None, new: Bits, dtype: str, *, whats: tuple[int, ...] = tuple(WHATS)) -> Coded:
    """The shortest edit that turns `old` into `new`.

    Args:
        old: None where there is nothing to start from.
        new: of the same length, not empty.
        dtype: of both.
        whats: what it may do; with PUT alone it means the same on any old bits.
    """
    if old is None:
        return coded(Edit(PUT, None, new), len(new))
    changed = np.flatnonzero(old != new)
    if not len(changed):
        return SAME
    found = coded(_best(old[changed], new[changed], dtype, whats, changed), len(new))
    if 2 * len(changed) > len(new):
        found = min(found, coded(_best(old, new, dtype, whats, None), len(new)), key=lambda made: len(made.data))
    return found


def _best(old: Bits, new: Bits, dtype: str, whats: tuple[int, ...], positions: Positions | None) -> Edit:
    step = -(-len(new) // SAMPLE)
    some = old[::step], new[::step]
    what = min(whats, key=lambda what: len(_values(WHATS[what].value(*some, dtype))))
    return Edit(what, positions, WHATS[what].value(old, new, dtype))


# An edit's bytes


def coded(edit: Edit, size: int) -> Coded:
    """An edit of a chunk of `size` elements, as it is written."""
    values = _values(edit.values)
    if edit.positions is None:
        return Coded(ALL, edit.what, values)
    count = varint(len(edit.positions))
    k, unary, rest = rice(edit.positions)
    gaps = count + bytes([k]) + varint(len(unary)) + unary + rest
    mask = np.zeros(size, np.uint8)
    mask[edit.positions] = 1
    # Few bits in runs gain from a thorough search; many at random gain nothing.
    bitmap = frame(np.packbits(mask, bitorder="little").data, 9 if 16 * len(edit.positions) < size else LEVEL)
    dense = count + varint(len(bitmap)) + bitmap
    where, positions = (GAPS, gaps) if len(gaps) <= len(dense) else (BITMAP, dense)
    return Coded(where, edit.what, positions + values)


def decoded(made: Coded, size: int, width: int) -> Edit:
    """The edit that `coded` gave, of a chunk of `size` elements of `width` bytes.

    Raises:
        ValueError: it gave something else.
    """
    if made.where not in _PLACES or made.what not in WHATS:
        raise ValueError(f"an edit of kind {made.where}, {made.what} (of a newer version?)")
    reader = _Reader(made.data)
    positions = _PLACES[made.where](reader, size)
    count = size if positions is None else len(positions)
    if not count:
        raise ValueError("an edit of nothing")
    values = from_planes([reader.part(count) for _ in range(width)], count)
    reader.end()
    return Edit(made.what, positions, values)


def positions_bytes(made: Coded, size: int) -> tuple[int, int]:
    """How many elements an edit names, and how many of its bytes say which; found without decoding it."""
    if made.where == ALL or not made.data:
        return (size if made.data else 0), 0
    reader = _Reader(made.data)
    count = reader.number(size)
    if made.where == GAPS:
        k = reader.take(1)[0]
        reader.take(reader.number(size) + (count * k + 7) // 8)
    else:
        reader.take(reader.number(size))
    return count, reader.at


def _values(values: Bits) -> bytes:
    """Byte planes, each with its length before it: a frame of its own, or as it is where that is no longer."""
    # One frame for all of them would code exponents and mantissas by one table.
    out = bytearray()
    for plane in planes(values):
        squeezed = entropy_frame(plane)
        kept = squeezed if len(squeezed) < len(plane) else plane
        out += varint(len(kept))
        out += kept
    return bytes(out)


class _Reader:
    """Goes through an edit's bytes; ValueError where they end too early or say too much."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, length: int) -> bytes:
        """The next bytes."""
        if self.at + length > len(self.data):
            raise ValueError("an edit ends too early")
        self.at += length
        return self.data[self.at - length : self.at]

    def number(self, most: int) -> int:
        """The next number, at most `most`."""
        value = 0
        for shift in range(0, 35, 7):
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
        if value > most or (byte == 0 and shift):
            raise ValueError("a number in an edit is too large")
        return value

    def part(self, size: int) -> bytes:
        """A length and so many bytes: a frame of `size`, or `size` bytes as they are."""
        length = self.number(size)
        data = self.take(length)
        return data if length == size else unframe(data, size)

    def end(self) -> None:
        """Nothing may follow."""
        if self.at != len(self.data):
            raise ValueError("bytes after an edit's end")


def _gaps(reader: _Reader, size: int) -> Positions:
    count = reader.number(size)
    k = reader.take(1)[0]
    unary = reader.take(reader.number(size))
    return unrice(k, unary, reader.take((count * k + 7) // 8), count, size)


def _bitmap(reader: _Reader, size: int) -> Positions:
    count = reader.number(size)
    packed = unframe(reader.take(reader.number(size + 1024)), (size + 7) // 8)
    bits = np.unpackbits(np.frombuffer(packed, np.uint8), bitorder="little")
    if bits[size:].any():
        raise ValueError("a position outside the chunk")
    positions = np.flatnonzero(bits)
    if len(positions) != count:
        raise ValueError("another number of positions")
    return positions


_PLACES: dict[int, Callable[[_Reader, int], Positions | None]] = {
    ALL: lambda reader, size: None,
    GAPS: _gaps,
    BITMAP: _bitmap,
}


# What two edits make, and what undoes one


def composed(first: Edit, second: Edit, size: int, dtype: str) -> Edit | None:
    """The edit that does what two in turn do; None where that depends on what they start from."""
    if second.what == PUT and second.positions is None:
        return second
    if first.what == PUT and first.positions is None:
        return Edit(PUT, None, second.play(first.values, dtype))
    if first.what != second.what:
        return None
    values, named = np.zeros(size, first.values.dtype), np.zeros(size, bool)
    for edit in (first, second):
        at = slice(None) if edit.positions is None else edit.positions
        values[at] = WHATS[edit.what].then(values[at], edit.values)
        named[at] = edit.what == PUT
    positions = np.flatnonzero(named | (values != 0))
    return Edit(first.what, None if len(positions) == size else positions, values[positions])


def inverse(edit: Edit) -> Edit | None:
    """The edit that undoes one; None where that needs the bits it started from."""
    back = WHATS[edit.what].back
    return None if back is None else Edit(edit.what, edit.positions, back(edit.values))
