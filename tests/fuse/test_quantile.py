"""Order statistics over blocks against a sort."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cofuse.checkpoint import map_each
from cofuse.fuse.kernels.digits import tally_lower, tally_upper
from cofuse.fuse.methods import Place
from cofuse.fuse.methods.quantile import order_statistics, plain_lower, plain_upper


def scan_of(blocks: list[Any], threads: int = 1) -> Any:
    return lambda look: map_each(lambda b: look([b], None, Place()), blocks, threads)


def itself(models: Iterable[Any], base: Any, place: Place) -> list[Any]:
    return list(models)


@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=60),
    st.integers(1, 9),
    st.data(),
)
def test_is_what_a_sort_gives(values: list[float], cut: int, data: st.DataObject) -> None:
    x = np.array(values, np.float32)
    ranks = data.draw(st.lists(st.integers(0, len(x) - 1), min_size=1, max_size=4))
    blocks = [x[i : i + cut] for i in range(0, len(x), cut)]
    (found,) = order_statistics(scan_of(blocks), itself, 1, lambda n: [r for r in ranks if r < n])
    assert found == np.sort(x)[ranks].tolist()


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_several_series_on_any_number_of_threads(threads: int) -> None:
    rng = np.random.default_rng(0)
    # Few distinct values, both signs, zeros, and the extremes of the format.
    x = np.round(rng.standard_normal(20_000), 2).astype(np.float32)
    x[:6] = [0.0, -0.0, 1e-45, -1e-45, 3e38, -3e38]
    blocks = np.split(x, 40)
    found = order_statistics(
        scan_of(blocks, threads), lambda models, base, place: two(models), 2, lambda n: [0, 1, n // 4, n - 2, n - 1]
    )
    for series, values in zip(found, two([x]), strict=True):
        ordered = np.sort(values)
        assert series == ordered[[0, 1, 5000, 19_998, 19_999]].tolist()


def two(models: Iterable[Any]) -> list[Any]:
    (x,) = models
    return [x, -0.5 * x]


def test_of_no_values_there_are_none() -> None:
    assert order_statistics(scan_of([]), itself, 1, lambda n: [0]) == [[]]
    assert order_statistics(scan_of([np.empty(0, np.float32)]), itself, 1, lambda n: [0]) == [[]]


@pytest.mark.parametrize("make", [np.asarray, torch.from_numpy])
def test_the_plain_counts_are_the_compiled_ones(make: Any) -> None:
    x = np.random.default_rng(1).standard_normal(5000).astype(np.float32)
    upper, plain = np.zeros(65536, np.int64), np.zeros(65536, np.int64)
    tally_upper(x.view(np.uint32), upper)
    plain_upper(make(x.view(np.int32)), plain)
    assert np.array_equal(upper, plain)
    slot = np.full(65536, -1, np.int8)
    slot[np.argsort(upper)[-3:]] = [0, 1, 2]
    lower, plain = np.zeros((3, 65536), np.int64), np.zeros((3, 65536), np.int64)
    tally_lower(x.view(np.uint32), slot, lower)
    plain_lower(make(x.view(np.int32)), slot, plain)
    assert lower.sum() > 0
    assert np.array_equal(lower, plain)
