"""PCB-Merging against its definition written out with sorts in float64."""

from __future__ import annotations

import pytest
import torch

from cofuse.checkpoint import Checkpoint, Memory
from cofuse.fuse import fuse
from cofuse.fuse import fused as fused_module

SHAPES = {"a": (40, 50), "b": (300,), "c": ()}


def inputs(count: int = 3) -> tuple[dict[str, torch.Tensor], list[dict[str, torch.Tensor]]]:
    generator = torch.Generator().manual_seed(0)

    def draw(spread: float) -> dict[str, torch.Tensor]:
        return {name: spread * torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}

    base = draw(1.0)
    return base, [{name: base[name] + d for name, d in draw(0.2).items()} for _ in range(count)]


def flat(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensors[name].double().reshape(-1) for name in SHAPES])


def norm(x: torch.Tensor) -> torch.Tensor:
    return (x - x.min()) / (x.max() - x.min())


def by_definition(
    base: torch.Tensor, models: list[torch.Tensor], density: float, scale: float, weight: list[float]
) -> torch.Tensor:
    changes = [t - base for t in models]
    total, shares = torch.zeros_like(base), torch.zeros_like(base)
    for change, w in zip(changes, weight, strict=True):
        n = len(change)
        ordered = change.abs().sort().values
        size = change.abs().clamp(ordered[int(n * 1e-4)], ordered[int(n * (1 - 1e-4) - 1)])
        score = torch.exp(len(models) * norm(size) ** 2) * torch.tanh(change * sum(changes))
        share = norm(score.clamp_min(score.sort().values[int(n * (1 - density))]))
        total += w * share * size * change.sign()
        shares += share
    return base + scale * total / shares.clamp_min(1e-12)


@pytest.mark.parametrize("density", [0.05, 0.2, 1.0])
@pytest.mark.parametrize("block", [64, 128 * 1024])
def test_is_its_definition(density: float, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_module, "BLOCK", block)
    base, tuned = inputs()
    weight = [1.0, 0.5, 2.0]
    models: list[Checkpoint] = [Memory(t) for t in tuned]
    got = fuse("pcb", models, base=Memory(base), weights=weight, density=density, scale=0.8)
    found = flat({name: got.read(name) for name in SHAPES})
    expected = by_definition(flat(base), [flat(t) for t in tuned], density, 0.8, weight)
    off = (found - expected).abs() > 1e-5
    # Where one model's share is all but nothing, what is left of it is rounding.
    assert int(off.sum()) <= 3


def test_the_scores_are_compared_over_the_whole_model() -> None:
    base = {"small": torch.zeros(100), "large": torch.zeros(100)}
    generator = torch.Generator().manual_seed(0)
    tuned = {"small": 0.01 * torch.randn(100, generator=generator), "large": torch.randn(100, generator=generator)}
    got = fuse("pcb", [Memory(tuned)], base=Memory(base), density=0.2)
    assert torch.count_nonzero(got.read("small")) == 0
    assert 30 <= torch.count_nonzero(got.read("large")) <= 40  # 0.2 of all, less the one at the threshold


def test_models_without_a_weight_take_no_part() -> None:
    base, tuned = inputs()
    two: list[Checkpoint] = [Memory(t) for t in tuned[:2]]
    three: list[Checkpoint] = [Memory(t) for t in (tuned[0], tuned[2], tuned[1])]
    for name in SHAPES:
        alone = fuse("pcb", two, base=Memory(base)).read(name)
        assert torch.equal(fuse("pcb", three, base=Memory(base), weights=[1, 0, 1]).read(name), alone)
    same = fuse("pcb", two, base=Memory(base), weights=[0, 0])
    assert all(torch.equal(same.read(name), base[name]) for name in SHAPES)


def test_models_that_are_the_base_give_it() -> None:
    base, _ = inputs()
    got = fuse("pcb", [Memory(base), Memory(base)], base=Memory(base))
    assert all(torch.equal(got.read(name), base[name]) for name in SHAPES)
