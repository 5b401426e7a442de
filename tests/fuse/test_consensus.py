"""Consensus Merging, entry by entry and by its laws."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cofuse.fuse.methods.consensus import consensus

from .test_sparsify import arrays, fuse


@pytest.mark.parametrize("least", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("threshold", [0.2, 0.6, [0.2, 0.4, 0.6]])
@pytest.mark.parametrize("weight", [1.0, [0.5, 0.0, 1.5]])
def test_entry_by_entry(least: int, threshold: float | list[float], weight: float | list[float]) -> None:
    models, base = arrays((20, 30))
    got = fuse("consensus", models, base, least=least, threshold=threshold, weight=weight, scale=0.3)
    t, w = (v if isinstance(v, list) else [v] * 3 for v in (threshold, weight))
    for at in np.ndindex(base.shape):
        own = [float(m[at] - base[at]) for m in models]
        total = sum(a * b for a, b in zip(w, own, strict=True))
        uses = sum(a > 0 and abs(d) > b * abs(total - d) for a, b, d in zip(w, t, own, strict=True))
        expected = float(base[at]) + (0.3 * total if uses >= least else 0.0)
        assert got[at] == pytest.approx(expected, abs=1e-6)


def test_between_task_arithmetic_and_the_base() -> None:
    models, base = arrays((20, 30))
    np.testing.assert_allclose(
        fuse("consensus", models, base, least=0, scale=0.4), fuse("task_arithmetic", models, base, scale=0.4), atol=1e-6
    )
    np.testing.assert_array_equal(fuse("consensus", models, base, least=4), base)
    kept = [np.count_nonzero(fuse("consensus", models, base, least=k) - base) for k in range(5)]
    assert kept == sorted(kept, reverse=True)
    assert kept[1] > kept[2] > kept[3] > 0
    sparser = [np.count_nonzero(fuse("consensus", models, base, threshold=t) - base) for t in (0.1, 0.4, 0.8, 2.0)]
    assert sparser == sorted(sparser, reverse=True)


def test_what_one_model_alone_has_changed_is_selfish() -> None:
    base, one = np.zeros(2, np.float32), np.array([1.0, 1.0], np.float32)
    other = np.array([0.0, 1.0], np.float32)
    assert fuse("consensus", [one, other], base).tolist() == [0.0, 2.0]
    assert fuse("consensus", [one, other], base, least=1).tolist() == [1.0, 2.0]


def test_torch_as_numpy() -> None:
    models, base = arrays((600,))
    settings = {"weight": [1.0, 0.5, 2.0], "threshold": [0.4, 0.3, 0.2], "scale": 0.5}
    mine = consensus((m.copy() for m in models), base.copy(), **settings)  # type: ignore[arg-type]
    theirs = consensus(map(torch.from_numpy, models), torch.from_numpy(base), **settings)  # type: ignore[arg-type]
    np.testing.assert_allclose(np.asarray(theirs), mine, rtol=1e-6, atol=1e-7)
