"""RAM and RAM+ against their definitions, entry by entry."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch

from cofuse.checkpoint import Checkpoint, Memory
from cofuse.fuse import fuse
from cofuse.fuse import fused as fused_module
from cofuse.fuse.kernels import ram as compiled

plain = import_module("cofuse.fuse.methods.ram")  # the package has its function by that name


def inputs(count: int = 4, size: int = 3000) -> tuple[torch.Tensor, list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(size, generator=generator)
    changes = [
        0.1 * torch.randn(size, generator=generator) * (torch.rand(size, generator=generator) < 0.3)
        for _ in range(count)
    ]
    return base, [base + d for d in changes]


def by_definition(
    base: torch.Tensor, models: list[torch.Tensor], epsilon: float, r: float = 0.0, alpha: float = 0.0
) -> torch.Tensor:
    changes = [t.double() - base.double() for t in models]
    changed = [(d.abs() > epsilon).tolist() for d in changes]
    numbers = [sum(column) for column in zip(*changed, strict=True)]
    out = base.double().tolist()
    for d, mine in zip(changes, changed, strict=True):
        shared = sum(m and n > 1 for m, n in zip(mine, numbers, strict=True))
        alone = sum(m and n == 1 for m, n in zip(mine, numbers, strict=True))
        factor = 1 + r * min(alpha, shared / max(alone, epsilon))
        for i, (change, m, n) in enumerate(zip(d.tolist(), mine, numbers, strict=True)):
            if m:
                out[i] += change * factor if n == 1 else change / n
    return torch.tensor(out, dtype=torch.float64)


@pytest.mark.parametrize("epsilon", [1e-5, 0.05])
@pytest.mark.parametrize("block", [100, 128 * 1024])
def test_are_their_definitions(epsilon: float, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_module, "BLOCK", block)
    base, tuned = inputs()
    models: list[Checkpoint] = [Memory({"x": t}) for t in tuned]
    got = fuse("ram", models, base=Memory({"x": base}), epsilon=epsilon).read("x")
    torch.testing.assert_close(got.double(), by_definition(base, tuned, epsilon), rtol=1e-6, atol=1e-6)
    for r, alpha in ((0.1, 0.2), (0.5, 3.0)):
        plus = fuse("ramplus_tl", models, base=Memory({"x": base}), epsilon=epsilon, r=r, alpha=alpha).read("x")
        torch.testing.assert_close(plus.double(), by_definition(base, tuned, epsilon, r, alpha), rtol=1e-6, atol=1e-6)
        assert not torch.equal(plus, got)


def test_what_one_model_alone_changed_is_kept_whole() -> None:
    base = Memory({"x": torch.zeros(3)})
    one, two = Memory({"x": torch.tensor([1.0, 2.0, 0.0])}), Memory({"x": torch.tensor([0.0, 4.0, 1e-6])})
    assert fuse("ram", [one, two], base=base).read("x").tolist() == [1.0, 3.0, 0.0]
    # The first shares as many as it has alone; the second has none alone.
    assert fuse("ramplus_tl", [one, two], base=base, r=1.0, alpha=5.0).read("x").tolist() == [2.0, 3.0, 0.0]
    assert fuse("ram", [one], base=base).read("x").tolist() == [1.0, 2.0, 0.0]


def arrays() -> tuple[list[Any], Any]:
    base, tuned = inputs()
    return [t.numpy().copy() for t in tuned], base.numpy().copy()


def test_compiled_and_plain_give_the_same_bytes() -> None:
    assert np.array_equal(compiled.ram(*arrays()), plain.ram(*arrays()))
    known = [1.5, 1.0, 1.25, 2.0]
    assert np.array_equal(compiled.ramplus_tl(*arrays(), known=known), plain.ramplus_tl(*arrays(), known=known))
    counts = compiled.count_shares(*arrays(), 1e-5)
    assert counts == plain.count_shares(*arrays(), 1e-5)
    assert all(shared > 0 and alone > 0 for shared, alone in counts)
