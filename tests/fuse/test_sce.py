"""SCE against the same written out in float64, and by its laws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from cofuse.fuse import METHODS
from cofuse.fuse.execute.cpu import compiled
from cofuse.fuse.methods.sce import sce, sce_selection

from .scans import NAME, ScanOf
from .test_sparsify import arrays, fuse, fused


def slow(models: Sequence[Any], base: Any, select_topk: float) -> Any:
    deltas = np.stack([(m - base).astype(np.float64) for m in models])  # in float32, as blocks are
    if select_topk < 1:
        spread = deltas.var(0).astype(np.float32).reshape(-1)
        chosen = np.zeros(spread.size, bool)
        chosen[np.argsort(-spread, kind="stable")[: int(select_topk * np.count_nonzero(spread))]] = True
        deltas *= chosen.reshape(base.shape)
    means = np.square(deltas).reshape(len(deltas), -1).mean(1)
    weight = means / means.sum() if means.sum() >= 1e-6 else np.full(len(means), 1 / len(means))
    agrees = np.sign(deltas) == np.where(deltas.sum(0) >= 0, 1, -1)
    shares = agrees * weight.reshape(-1, *[1] * base.ndim)
    return base + (shares * deltas).sum(0) / shares.sum(0).clip(1e-6)


@pytest.mark.parametrize("select_topk", [0.0, 0.001, 0.1, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("shape", [(60, 71), (4260,), (20, 71, 3), (1, 1), ()], ids=str)
@pytest.mark.parametrize("spread", [0.1, 1e-5])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_close_to_float64(select_topk: float, shape: tuple[int, ...], spread: float, count: int) -> None:
    models, base = arrays(shape, count, spread=spread)
    got = fuse("sce", models, base, select_topk=select_topk)
    expected = slow(models, base, select_topk)
    assert (abs(got - expected) <= 4e-7 * (abs(base) + np.max([abs(m) for m in models], axis=0))).all()


def test_selects_where_models_differ() -> None:
    base = np.zeros(4, np.float32)
    # Variances 0, 1, 9, 4: the models agree in the first entry, which is not among those that count.
    a, b = np.array([5.0, 1.0, 3.0, 2.0], np.float32), np.array([5.0, -1.0, -3.0, -2.0], np.float32)
    assert fuse("sce", [a, b], base, select_topk=0.34).tolist() == [0.0, 0.0, 3.0, 0.0]
    assert fuse("sce", [a, b], base, select_topk=0.99).tolist() == [0.0, 0.0, 3.0, 2.0]
    assert fuse("sce", [a, b], base, select_topk=1.0).tolist() == [5.0, 1.0, 3.0, 2.0]
    # Of equal variances the first.
    assert fuse("sce", [a * 0 + 1, -a * 0 - 1], base, select_topk=0.5).tolist() == [1.0, 1.0, 0.0, 0.0]


def test_larger_changes_weigh_more_unless_all_are_tiny() -> None:
    base, one = np.zeros(3, np.float32), np.ones(3, np.float32)
    assert fuse("sce", [one, 3 * one], base).tolist() == pytest.approx([(1 * 1 + 9 * 3) / 10] * 3, rel=1e-6)
    tiny = np.float32(2**-12)
    assert fuse("sce", [one * tiny, 3 * one * tiny], base).tolist() == [2.0 * tiny] * 3


def test_one_model_and_equal_models() -> None:
    models, base = arrays((20, 30), 1)
    np.testing.assert_allclose(fuse("sce", models, base), models[0], rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(fuse("sce", models * 4, base), models[0], rtol=1e-6, atol=1e-7)
    # Where nothing varies, any share below one selects nothing.
    np.testing.assert_array_equal(fuse("sce", models * 4, base, select_topk=0.9), base)
    np.testing.assert_array_equal(
        fuse("sce", [*models, base], base, int8_mask=True), fuse("sce", [*models, base], base)
    )


@pytest.mark.parametrize("select_topk", [1.0, 0.3])
def test_the_same_bytes_on_any_threads_and_for_any_range(select_topk: float) -> None:
    models, base = arrays((3, 100_003), 2)
    whole = bytes(fused("sce", models, base, select_topk=select_topk).read_bytes(NAME))
    for threads in (2, 8):
        many = fused("sce", models, base, select_topk=select_topk, threads=threads)
        assert bytes(many.read_bytes(NAME, 700_001, 900_000)) == whole[700_001:900_000]
        assert bytes(many.read_bytes(NAME)) == whole


@pytest.mark.parametrize("select_topk", [1.0, 0.3])
def test_compiled_as_plain_and_torch_as_numpy(select_topk: float) -> None:
    models, base = arrays((30, 41))
    found = []
    for function, like in ((compiled(METHODS["sce"]), np.asarray), (sce, np.asarray), (sce, torch.from_numpy)):
        scan = ScanOf([like(m) for m in models], like(base), block=400)
        known = sce_selection(scan, select_topk=select_topk)
        parts = [function(*scan.given(part), known=known, place=place) for place, part in scan.places()]
        found.append(np.concatenate([np.asarray(p) for p in parts]))
    np.testing.assert_allclose(found[1], found[0], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found[2], found[0], rtol=1e-6, atol=1e-6)
