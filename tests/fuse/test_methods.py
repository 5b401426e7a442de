"""The laws that every row of METHODS keeps, and each method against float64 arithmetic written out."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch

from cofuse.checkpoint import Checkpoint, Memory
from cofuse.fuse import METHODS, Fused, fuse

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
# What each method is in float64. A new method comes with its line here.
REFERENCES: dict[str, Any] = {
    "linear": lambda models, base, weight: sum(w * t for w, t in zip(weight, models, strict=True)) / sum(weight),
    "task_arithmetic": lambda models, base, weight: (
        base + sum(w * (t - base) for w, t in zip(weight, models, strict=True))
    ),
}

every_method = pytest.mark.parametrize("method", METHODS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def model(seed: int, dtype: torch.dtype = torch.float32, *, spread: float = 1.0) -> Memory:
    generator = torch.Generator().manual_seed(seed)
    wide = torch.randn(37, 11, generator=generator) * spread
    return Memory(
        {
            "wide": wide.to(dtype),
            "scalar": torch.randn((), generator=generator).to(dtype),
            "empty": torch.empty(0, 3, dtype=dtype),
            "steps": torch.tensor([seed, 7]),
            "flag": torch.tensor([seed % 2 == 0]),
        }
    )


def fused(method: str, models: Sequence[Checkpoint], base: Checkpoint, **parameters: Any) -> Fused:
    return fuse(method, models, base=base if METHODS[method].needs_base else None, **parameters)


def ulps(got: torch.Tensor, expected: torch.Tensor, scale: torch.Tensor) -> float:
    """Largest distance, counted in the spacing of numbers of the size of `scale`."""
    if not got.numel():
        return 0.0
    _, exponent = torch.frexp(scale.double().abs().clamp_min(torch.finfo(expected.dtype).tiny))
    spacing = torch.finfo(expected.dtype).eps * 2.0 ** (exponent.double() - 1)
    return float(((got.double() - expected.double()).abs() / spacing).max())


@every_method
def test_has_a_float64_reference(method: str) -> None:
    assert method in REFERENCES


@every_method
@every_dtype
@pytest.mark.parametrize("count", [1, 2, 7, 40])
def test_identical_models_give_that_model(method: str, dtype: torch.dtype, count: int) -> None:
    same, base = model(1, dtype), model(2, dtype)
    weights = [0.1 + i for i in range(count)]
    got = fused(method, [same] * count, base, weights=weights, normalize=True)
    for name in ("wide", "scalar", "empty"):
        size = torch.maximum(same.read(name).abs(), base.read(name).abs())
        assert ulps(got.read(name), same.read(name), size) <= 1, name


@every_method
@every_dtype
@pytest.mark.parametrize("hot", [0, 1, 2])
def test_a_one_hot_weight_gives_that_model(method: str, dtype: torch.dtype, hot: int) -> None:
    models, base = [model(i, dtype) for i in range(3)], model(9, dtype)
    got = fused(method, models, base, weights=[float(i == hot) for i in range(3)])
    for name in ("wide", "scalar"):
        expected = models[hot].read(name)
        assert ulps(got.read(name), expected, torch.maximum(expected.abs(), base.read(name).abs())) <= 1
        if not METHODS[method].needs_base:
            assert torch.equal(got.read(name), expected)


@every_method
@every_dtype
def test_close_to_float64_and_of_the_same_dtype(method: str, dtype: torch.dtype) -> None:
    base = model(9, dtype)
    models = [model(i, dtype, spread=0.1) for i in range(5)]
    weights = [0.5, 1.0, 0.0, 2.0, 0.25]
    got = fused(method, models, base, weights=weights)
    for name in ("wide", "scalar"):
        assert got.read(name).dtype == dtype
        exact = REFERENCES[method]([m.read(name).double() for m in models], base.read(name).double(), weights)
        # A rounding of each model in the working dtype, and one to the dtype of the result.
        size = sum(m.read(name).double().abs() + base.read(name).double().abs() for m in models)
        assert ulps(got.read(name), exact.to(dtype), size) <= 4


@every_method
def test_order_does_not_matter_beyond_rounding(method: str) -> None:
    models, base = [model(i) for i in range(5)], model(9)
    weights = [0.5, 1.0, 0.3, 2.0, 0.25]
    forth = fused(method, models, base, weights=weights)
    back = fused(method, models[::-1], base, weights=weights[::-1])
    torch.testing.assert_close(forth.read("wide"), back.read("wide"), rtol=1e-6, atol=1e-5)
    assert torch.equal(forth.read("wide"), fused(method, models, base, weights=weights).read("wide"))


@every_method
@every_dtype
def test_blocks_equal_the_whole(method: str, dtype: torch.dtype) -> None:
    got = fused(method, [model(i, dtype) for i in range(3)], model(9, dtype), weights=[0.3, 0.5, 0.9])
    whole = bytes(got.read_bytes("wide"))
    for size in (8, 24, 104, 1000, 10**6):
        assert b"".join(bytes(got.read_bytes("wide", a, b)) for a, b in got.blocks("wide", size)) == whole
    # Any range at all, cut inside elements too.
    for start, stop in ((0, 1), (3, 3), (5, 18), (7, len(whole))):
        assert bytes(got.read_bytes("wide", start, stop)) == whole[start:stop]
    assert torch.equal(got.read("wide", slice(2, 9)), got.read("wide")[2:9])


@every_method
def test_inputs_are_not_changed(method: str) -> None:
    tensors = [torch.randn(50) for _ in range(4)]
    before = [t.clone() for t in tensors]
    METHODS[method].function(iter(tensors[:3]), tensors[3], weight=[0.5, 2.0, 0.1])
    assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))
    out = METHODS[method].function(iter(tensors[:1]), tensors[3], weight=[1.0])
    out.add_(1)  # nor is the result one of them
    assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))


@every_method
def test_what_is_no_float_is_copied_from_the_first(method: str) -> None:
    models, base = [model(3), model(4)], model(9)
    leader = base if METHODS[method].needs_base else models[0]
    got = fused(method, models, base)
    for name in ("steps", "flag"):
        assert torch.equal(got.read(name), leader.read(name))
    assert got.plan.tensors["steps"].method is None


@every_method
def test_models_are_read_one_at_a_time(method: str) -> None:
    given: list[weakref.ref[torch.Tensor]] = []
    most = 0

    def blocks() -> Iterator[torch.Tensor]:
        nonlocal most
        for _ in range(20):
            most = max(most, sum(ref() is not None for ref in given))
            block = torch.ones(4)
            given.append(weakref.ref(block))
            yield block
            del block

    METHODS[method].function(blocks(), torch.zeros(4), weight=[1.0] * 20)
    assert len(given) == 20
    assert most == 1  # the one that the sum starts from


def test_linear_sums_without_normalising() -> None:
    models = [Memory({"x": torch.tensor([1.0, 2.0])}), Memory({"x": torch.tensor([10.0, 20.0])})]
    assert fuse("linear", models, weights=[2, 1], normalize=False).read("x").tolist() == [12.0, 24.0]
    assert fuse("linear", models, weights=[0, 0], normalize=False).read("x").tolist() == [0.0, 0.0]
    assert fuse("linear", models, weight=3).read("x").tolist() == [5.5, 11.0]


def test_a_long_sum_does_not_lose_small_changes() -> None:
    generator = torch.Generator().manual_seed(0)
    start = 1 + torch.rand(1000, generator=generator)
    models = [Memory({"x": start + 1e-3 * torch.randn(1000, generator=generator)}) for _ in range(200)]
    exact = torch.stack([m.read("x").double() for m in models]).mean(0)
    got = fuse("linear", models).read("x")
    assert ulps(got, exact.float(), exact) <= 1


def test_task_arithmetic_scales_and_forgets() -> None:
    base = Memory({"x": torch.tensor([1.0])})
    models = [Memory({"x": torch.tensor([3.0])}), Memory({"x": torch.tensor([0.0])})]
    assert fuse("task_arithmetic", models, base=base, scale=0.5).read("x").item() == 1.5
    assert fuse("task_arithmetic", models, base=base, weights=[1, -1]).read("x").item() == 4.0
    assert fuse("task_arithmetic", models, base=base, weights=[3, 1], normalize=True).read("x").item() == 2.25
