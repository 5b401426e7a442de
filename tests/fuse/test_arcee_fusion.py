"""Arcee Fusion against its definition written out in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cofuse.checkpoint import Memory
from cofuse.fuse import fuse
from cofuse.fuse import fused as fused_module
from cofuse.fuse.kernels.arcee_fusion import divergence as compiled
from cofuse.fuse.methods.arcee_fusion import divergence


def draw(*shape: int, spread: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    base = 0.05 * torch.randn(shape, generator=generator)
    return base, base + spread * torch.randn(shape, generator=generator)


def by_definition(base: torch.Tensor, tuned: torch.Tensor) -> torch.Tensor:
    wide, start = tuned.double(), base.double()
    p, q = (torch.softmax(x, -1) + 1e-8 for x in (wide, start))
    importance = (wide - start).abs() * (p * torch.log(p / q)).sum(-1, keepdim=True)
    ordered = importance.reshape(-1).sort().values
    q1, median, q3 = (ordered[int(q * (ordered.numel() - 1))] for q in (0.25, 0.5, 0.75))
    return torch.where(importance >= median + 1.5 * (q3 - q1), tuned, base)


@pytest.mark.parametrize("shape", [(60, 300), (300,), (16, 8, 3, 3), (5, 64), (1, 1), (40, 1), ()])
@pytest.mark.parametrize("spread", [0.002, 0.1, 3.0])
@pytest.mark.parametrize("block", [100, 128 * 1024])
def test_is_its_definition(shape: tuple[int, ...], spread: float, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_module, "BLOCK", block)
    base, tuned = draw(*shape, spread=spread)
    got = fuse("arcee_fusion", [Memory({"x": tuned})], base=Memory({"x": base})).read("x")
    assert torch.equal(got, by_definition(base, tuned))
    if len(shape) and max(shape) > 50:
        assert 0.02 < (got == tuned).float().mean() < 0.3  # the important ones alone


def test_every_entry_is_the_bases_or_the_tuned_models() -> None:
    base, tuned = (x.bfloat16() for x in draw(200, 300, spread=0.01))
    got = fuse("arcee_fusion", [Memory({"x": tuned})], base=Memory({"x": base})).read("x")
    assert bool(((got == base) | (got == tuned)).all())


def test_a_model_that_is_the_base_gives_it() -> None:
    base, _ = draw(30, 70, spread=0.0)
    assert torch.equal(fuse("arcee_fusion", [Memory({"x": base})], base=Memory({"x": base})).read("x"), base)


@pytest.mark.parametrize("spread", [1e-6, 1e-4, 0.01, 0.1, 2.0, 30.0])
@pytest.mark.parametrize("size", [1, 2, 63, 2048])
def test_the_compiled_divergence_is_the_plain_one(spread: float, size: int) -> None:
    base, tuned = (x.numpy() for x in draw(20, size, spread=spread, seed=size))
    expected = divergence(tuned, base)
    # Below float32's rounding of a softmax, a divergence of 1e-14 say, only its size is meant.
    np.testing.assert_allclose(compiled(tuned, base), expected, rtol=2e-5, atol=1e-18)
    assert (expected >= 0).all()
    assert (compiled(base, base) == 0).all()


def test_a_divergence_is_that_of_the_distributions() -> None:
    base, tuned = (x.double().numpy() for x in draw(20, 50, spread=0.5))
    p, q = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) + 1e-8 for x in (tuned, base))
    np.testing.assert_allclose(divergence(tuned, base), (p * np.log(p / q)).sum(-1), rtol=1e-6)
