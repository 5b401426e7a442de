"""Bits of elements as numbers that code well: ordered integers, differences, gaps between positions, byte planes.

All are bijections on the bits, so what is coded with them comes back bit for bit, NaN and -0 among it. Elements are
unsigned integers of 1, 2, 4 or 8 bytes; arithmetic is modulo their size.

Sources: the order of floats as integers is IEEE 754's (sec. 5.10, totalOrder); Rice codes are Rice and Plaunt, 1971, here
with unary and binary parts kept apart, so that numpy codes a million at once.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Bits: TypeAlias = npt.NDArray[np.unsignedinteger[Any]]
Positions: TypeAlias = npt.NDArray[np.int64]

# Kinds whose bits are a sign and a magnitude; the bits of the others are the number. A complex number is two floats.
_SIGNED = frozenset({"F64", "F32", "F16", "BF16", "C64", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ"})
_WIDTHS = {
    "F64": 8, "I64": 8, "U64": 8, "C64": 4, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
}  # fmt: skip
MAX_RICE = 22  # bits of a remainder: positions are below 2^22


def width_of(dtype: str) -> int:
    """Bytes of the elements that a dtype is coded as: its own, a byte for those that are smaller.

    >>> width_of("BF16"), width_of("C64"), width_of("F4")
    (2, 4, 1)
    """
    return _WIDTHS.get(dtype, 1)


def as_bits(data: bytes | bytearray | memoryview, dtype: str) -> Bits:
    """Bytes of whole elements as unsigned integers, without a copy."""
    bits: Bits = np.frombuffer(data, f"<u{width_of(dtype)}")
    return bits


def ordered(bits: Bits, dtype: str) -> Bits:
    """Bits of a float as the integer that says where it stands among all floats; of an integer, the bits themselves.

    >>> ordered(np.array([-1.0, -0.0, 0.0, 1.0], np.float32).view(np.uint32), "F32").astype(np.int64).tolist()
    [1082130431, 2147483647, 2147483648, 3212836864]
    """
    if dtype not in _SIGNED:
        return bits
    sign, shift = _sign(bits)
    place: Bits = bits ^ (-(bits >> shift) | sign)  # the sign bit flips; below zero the rest does too
    return place


def unordered(order: Bits, dtype: str) -> Bits:
    """The inverse of `ordered`."""
    if dtype not in _SIGNED:
        return order
    sign, shift = _sign(order)
    return order ^ (((order >> shift) - order.dtype.type(1)) | sign)


def zigzag(difference: Bits) -> Bits:
    """Differences modulo 2^w, near zero in both directions, as small numbers: 0, -1, 1, -2, ... -> 0, 1, 2, 3, ...

    >>> zigzag(np.array([0, 255, 1, 254], np.uint8)).tolist()
    [0, 1, 2, 3]
    """
    _, shift = _sign(difference)
    return (difference << difference.dtype.type(1)) ^ -(difference >> shift)


def unzigzag(code: Bits) -> Bits:
    """The inverse of `zigzag`."""
    one = code.dtype.type(1)
    return (code >> one) ^ -(code & one)


def _sign(bits: Bits) -> tuple[np.unsignedinteger[Any], np.unsignedinteger[Any]]:
    kind, size = bits.dtype.type, 8 * bits.dtype.itemsize
    return kind(1 << (size - 1)), kind(size - 1)


def planes(values: Bits) -> list[memoryview]:
    """The lowest byte of every value, then the next of every value, ..."""
    table = np.ascontiguousarray(values).view(np.uint8).reshape(-1, values.dtype.itemsize).T
    return [np.ascontiguousarray(plane).data for plane in table]


def from_planes(parts: list[bytes], count: int) -> Bits:
    """The inverse of `planes`."""
    table = np.empty((count, len(parts)), np.uint8)
    for k, part in enumerate(parts):
        table[:, k] = np.frombuffer(part, np.uint8)
    return table.reshape(-1).view(f"<u{len(parts)}")


def rice(positions: Positions) -> tuple[int, bytes, bytes]:
    """Rising positions by the gaps between them: g = q 2^k + r, q in unary, r in k bits.

    Where positions are drawn with probability p each, this takes within 4 % of their entropy H(p)/p for p up to 0.3.

    Returns:
        k; the unary part (q zeros and a one for each gap); the remainders, k bits each. Both fill bytes from the lowest
        bit.

    >>> k, unary, rest = rice(np.array([3, 500, 1003]))
    >>> k, len(unary), len(rest)
    (8, 1, 3)
    """
    gaps = np.diff(positions, prepend=-1) - 1
    mean = int(gaps.sum()) // len(gaps) if len(gaps) else 0
    near = max(0, mean.bit_length() - 1)
    k = min(range(max(0, near - 1), min(near + 2, MAX_RICE) + 1), key=lambda k: int((gaps >> k).sum()) + len(gaps) * k)
    ends = np.cumsum((gaps >> k) + 1) - 1
    unary = np.zeros(int(ends[-1]) + 1 if len(ends) else 0, np.uint8)
    unary[ends] = 1
    rest = np.empty((len(gaps), k), np.uint8)
    for bit in range(k):
        rest[:, bit] = (gaps >> bit) & 1
    return k, _packed(unary), _packed(rest.reshape(-1))


def unrice(k: int, unary: bytes, rest: bytes, count: int, size: int) -> Positions:
    """The inverse of `rice`: `count` rising positions below `size`.

    Raises:
        ValueError: the parts are not what `rice` gives for that many positions there.
    """
    if not (0 <= k <= MAX_RICE and 0 <= count <= size):
        raise ValueError("more positions than elements")
    if len(unary) > (count + (size >> k) + 7) // 8 or len(rest) != (count * k + 7) // 8:
        raise ValueError("positions take another number of bytes")
    bits = np.unpackbits(np.frombuffer(unary, np.uint8), bitorder="little")
    ends = np.flatnonzero(bits)
    if len(ends) != count or len(unary) != (int(ends[-1]) // 8 + 1 if count else 0):
        raise ValueError("another number of positions")
    gaps = (np.diff(ends, prepend=-1) - 1) << k
    rows = np.unpackbits(np.frombuffer(rest, np.uint8), bitorder="little")
    if rows[count * k :].any():
        raise ValueError("bits after the last position")
    for bit, column in enumerate(rows[: count * k].reshape(count, k).T if k else ()):
        gaps += column.astype(np.int64) << bit
    positions = np.cumsum(gaps + 1) - 1
    if count and int(positions[-1]) >= size:
        raise ValueError("a position outside the chunk")
    return positions


def _packed(bits: npt.NDArray[np.uint8]) -> bytes:
    return np.packbits(bits, bitorder="little").tobytes()


def varint(value: int) -> bytes:
    """A number in groups of seven bits, lowest first, all but the last with the highest bit set (LEB128).

    >>> varint(300).hex()
    'ac02'
    """
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
