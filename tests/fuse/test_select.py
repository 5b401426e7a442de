"""Exact selection by magnitude, against a stable sort of the whole."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cofuse.fuse.methods import Array, select
from cofuse.fuse.methods.select import EVERY, NONE, Cut, cuts
from cofuse.fuse.methods.steps import steps_for

from .scans import ScanOf


def taken(scan: ScanOf, of: Cut, lane: int = 0) -> list[int]:
    """The entries before a cut, found block by block."""
    found = []
    for place, part in scan.places():
        values = scan.blocks(scan.models[lane], part)
        until = of.until(values, place.index, steps_for(values))
        size, index = abs(values), np.arange(len(values))
        size = np.asarray(size)
        before = (size > of.value) | ((size == of.value) & (index < until))
        found += (np.flatnonzero(before) + place.start).tolist()
    return found


def slow(values: Any, rank: int) -> list[int]:
    """The first `rank` entries of a stable sort, the largest magnitudes first."""
    return sorted(np.argsort(-np.abs(np.asarray(values)), kind="stable")[:rank].tolist())


def lanes(models: Iterable[Array], base: Array | None) -> Iterable[Array]:
    return models


KINDS = {
    "normal": lambda g, n: g.standard_normal(n),
    "few values": lambda g, n: g.integers(-3, 4, n) * 0.001,
    "one value": lambda g, n: g.choice([-0.5, 0.5], n),
    "mostly zero": lambda g, n: g.standard_normal(n) * (g.random(n) < 0.1),
    "near each other": lambda g, n: 1 + g.integers(0, 40, n) * 2.0**-22,
    "tiny": lambda g, n: g.standard_normal(n) * 1e-40,
    "huge": lambda g, n: g.standard_normal(n) * 1e37,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("gathered", [1 << 25, 0], ids=["gathered", "counted"])
@pytest.mark.parametrize("block", [1, 37, 256, 10**6])
def test_takes_what_a_stable_sort_takes(
    kind: str, dtype: Any, gathered: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(select, "GATHERED", gathered)
    generator = np.random.default_rng(0)
    n = 400
    models = [KINDS[kind](generator, n).astype(dtype) for _ in range(2)]
    wanted = [[0, 1, 40, n], [n - 1, 200, 7, n + 3]]
    scan = ScanOf(models, block=block)
    found = cuts(scan, lanes, lambda count, nonzero: wanted)
    assert found[0][0] == NONE
    assert found[1][3] == EVERY
    for lane in range(2):
        for rank, of in zip(wanted[lane], found[lane], strict=True):
            assert taken(scan, of, lane) == slow(models[lane], rank)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_torch_selects_as_numpy_does(dtype: torch.dtype) -> None:
    values = torch.randn(500, generator=torch.Generator().manual_seed(0)).mul(9).round().div(9).to(dtype)
    mine = cuts(ScanOf([values], block=64), lanes, lambda n, nonzero: [[5, 250]])
    theirs = cuts(ScanOf([values.numpy()], block=64), lanes, lambda n, nonzero: [[5, 250]])
    assert mine == theirs
    assert taken(ScanOf([values], block=64), mine[0][1]) == slow(values, 250)


def test_neither_blocks_nor_threads_change_what_is_taken() -> None:
    generator = np.random.default_rng(1)
    values = np.round(generator.standard_normal(20_000), 2).astype(np.float32)
    expected = slow(values, 6000)
    for block, threads in [(20_000, 1), (777, 1), (777, 4), (64, 8)]:
        scan = ScanOf([values], block=block, threads=threads)
        ((found,),) = cuts(scan, lanes, lambda n, nonzero: [[6000]])
        assert taken(scan, found) == expected
        assert scan.scans == 2  # one count, then a look at what may still be meant


def test_says_how_many_there_are_and_how_many_are_not_zero() -> None:
    seen = []
    values = [np.array([0.0, -0.0, 1.0, -2.0], np.float32), np.array([0.0, 5.0, 5.0, 5.0], np.float32)]

    def ranks(n: int, nonzero: list[int]) -> list[list[int]]:
        seen.append((n, nonzero))
        return [[], [1]]

    found = cuts(ScanOf(values, block=3), lanes, ranks)
    assert seen == [(4, [2, 3])]
    assert [len(f) for f in found] == [0, 1]


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(np.float32, st.integers(1, 80), elements=st.floats(-2, 2, width=32)),
    st.integers(0, 90),
    st.integers(1, 90),
)
def test_any_floats_any_rank_any_block(values: Any, rank: int, block: int) -> None:
    scan = ScanOf([values], block=block)
    ((found,),) = cuts(scan, lanes, lambda n, nonzero: [[rank]])
    assert taken(scan, found) == slow(values, rank)
