"""Bits as numbers that code well: bijections, in the order of the floats, near the entropy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cofuse.checkpoint.bitcode import (
    as_bits,
    from_planes,
    ordered,
    planes,
    rice,
    unordered,
    unrice,
    unzigzag,
    varint,
    width_of,
    zigzag,
)
from cofuse.checkpoint.dtypes import DTYPES, bits, torch_dtype
from cofuse.checkpoint.frames import frame, unframe

EVERY = {1: np.arange(2**8, dtype=np.uint8), 2: np.arange(2**16, dtype=np.uint16)}


def some(width: int, seed: int = 0) -> np.ndarray:
    """All values of a small element, many of a large one."""
    return EVERY.get(width, np.random.default_rng(seed).integers(0, 256, 8 * 4096, np.uint8).view(f"u{width}"))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_order_is_a_bijection(dtype: str) -> None:
    values = some(width_of(dtype))
    assert width_of(dtype) == (4 if dtype == "C64" else max(1, bits(dtype) // 8))
    assert np.array_equal(unordered(ordered(values, dtype), dtype), values)
    if width_of(dtype) <= 2:
        assert len(np.unique(ordered(values, dtype))) == len(values)


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"])
def test_the_order_is_that_of_the_floats(dtype: str) -> None:
    values = some(width_of(dtype))
    floats = torch.from_numpy(values.view(np.uint8).copy()).view(torch_dtype(dtype)).double().numpy()
    values, floats = values[~np.isnan(floats)], floats[~np.isnan(floats)]
    by_bits = floats[np.argsort(ordered(values, dtype), kind="stable")]
    assert (np.diff(by_bits) >= 0).all()


def test_minus_zero_is_beside_zero() -> None:
    zeros = np.array([-0.0, 0.0], np.float32)
    assert np.diff(ordered(as_bits(zeros.tobytes(), "F32"), "F32")) == 1


@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_zigzag_is_a_bijection_that_keeps_small_numbers_small(width: int) -> None:
    values = some(width)
    assert np.array_equal(unzigzag(zigzag(values)), values)
    near = np.array([0, -1, 1, -2, 2], f"i{width}").view(f"u{width}")
    assert zigzag(near).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_planes_are_the_bytes_in_turn(width: int) -> None:
    values = some(width)
    parts = planes(values)
    assert [bytes(part) for part in parts] == [values.tobytes()[k::width] for k in range(width)]
    assert np.array_equal(from_planes([bytes(part) for part in parts], len(values)), values)
    assert np.array_equal(from_planes([bytes(part) for part in planes(values[::3])], len(values[::3])), values[::3])


def slow_unrice(k: int, unary: bytes, rest: bytes, count: int) -> list[int]:
    """Bit by bit, as the definition says."""

    def bit(data: bytes, at: int) -> int:
        return data[at // 8] >> at % 8 & 1

    positions, at, place = [], 0, -1
    for i in range(count):
        quotient = 0
        while not bit(unary, at):
            quotient, at = quotient + 1, at + 1
        at += 1
        remainder = sum(bit(rest, i * k + j) << j for j in range(k))
        place += (quotient << k) + remainder + 1
        positions.append(place)
    return positions


@given(st.sets(st.integers(0, 3000), min_size=1), st.integers(3001, 5000))
def test_rice_codes_come_back_and_are_what_they_are_said_to_be(chosen: set[int], size: int) -> None:
    positions = np.array(sorted(chosen))
    k, unary, rest = rice(positions)
    assert np.array_equal(unrice(k, unary, rest, len(positions), size), positions)
    assert slow_unrice(k, unary, rest, len(positions)) == positions.tolist()


@given(st.sets(st.integers(0, 40), min_size=1, max_size=20), st.data())
def test_other_rice_codes_are_refused_or_are_positions(chosen: set[int], data: st.DataObject) -> None:
    """Whatever the bytes: rising positions inside, as many as said, or a ValueError."""
    k, unary, rest = rice(np.array(sorted(chosen)))
    k = data.draw(st.integers(0, 30) | st.just(k))
    unary = data.draw(st.binary(max_size=8) | st.just(unary))
    rest = data.draw(st.binary(max_size=20) | st.just(rest))
    count = data.draw(st.integers(0, 60) | st.just(len(chosen)))
    try:
        found = unrice(k, unary, rest, count, 41)
    except ValueError:
        return
    assert len(found) == count
    assert (np.diff(found) > 0).all()
    assert count == 0 or (found[0] >= 0 and found[-1] < 41)


@pytest.mark.parametrize("p", [0.0001, 0.005, 0.05, 0.3])
def test_rice_codes_are_near_the_entropy(p: float) -> None:
    positions = np.flatnonzero(np.random.default_rng(0).random(1 << 20) < p)
    _, unary, rest = rice(positions)
    entropy = -math.log2(p) - (1 - p) / p * math.log2(1 - p)  # bits a position
    assert 8 * (len(unary) + len(rest)) / len(positions) < 1.04 * entropy + 0.5 / len(positions)


def test_frames_state_their_size() -> None:
    stored = frame(b"x" * 1000)
    assert unframe(stored, 1000) == b"x" * 1000
    for wrong, size in ((stored, 999), (stored[:-1], 1000), (stored + b"x", 1000), (b"", 0), (b"no frame", 8)):
        with pytest.raises(ValueError, match=r".+"):
            unframe(wrong, size)


def test_varints() -> None:
    assert [varint(n).hex() for n in (0, 127, 128, 300, 2**22)] == ["00", "7f", "8001", "ac02", "80808002"]
