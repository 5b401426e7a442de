"""The laws that every row of METHODS keeps; `laws.py` says with which settings."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cofuse.checkpoint import Checkpoint, Memory, open_local, save
from cofuse.errors import FuseError
from cofuse.fuse import METHODS, CpuExecutor, Fused, fuse
from cofuse.fuse import fused as fused_module

from .alive import COUNT, most_alive
from .laws import LAWS, statistics

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
every_method = pytest.mark.parametrize("method", METHODS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
FLOATING = ("wide", "tall", "conv", "vector", "scalar", "empty")


def start(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(99)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    return {
        "wide": draw(37, 11),
        "tall": draw(5, 64),
        "conv": draw(6, 3, 2, 2),
        "vector": draw(17),
        "scalar": draw(),
        "empty": torch.empty(0, 3, dtype=dtype),
        "steps": torch.tensor([99, 7]),
        "flag": torch.tensor([True]),
    }


def base_model(dtype: torch.dtype = torch.float32) -> Memory:
    return Memory(start(dtype))


def tuned(seed: int, dtype: torch.dtype = torch.float32, spread: float = 0.1) -> Memory:
    """The base with a change of its own."""
    generator = torch.Generator().manual_seed(seed)
    changed = {
        name: (t + spread * torch.randn(t.shape, generator=generator)).to(dtype) if t.is_floating_point() else t + seed
        for name, t in start(dtype).items()
        if name != "flag"
    }
    return Memory({**changed, "flag": torch.tensor([seed % 2 == 0])})


def several(method: str, dtype: torch.dtype = torch.float32) -> list[Checkpoint]:
    return [tuned(i, dtype) for i in range(LAWS[method].models)]


def fused_by(method: str, models: list[Checkpoint], base: Checkpoint, **settings: Any) -> Fused:
    own = base if METHODS[method].needs_base else None
    return fuse(method, models, base=own, statistics=statistics(method, models), **settings)


def ulps(got: torch.Tensor, expected: torch.Tensor, size: torch.Tensor) -> float:
    """Largest distance, counted in the spacing of numbers of the size of `size`."""
    if not got.numel():
        return 0.0
    _, exponent = torch.frexp(size.double().abs().clamp_min(torch.finfo(got.dtype).tiny))
    spacing = torch.finfo(got.dtype).eps * 2.0 ** (exponent.double() - 1)
    return float(((got.double() - expected.double()).abs() / spacing).max())


def roundings(dtype: torch.dtype) -> int:
    """How many of the dtype's units an exact law may be off: blocks are computed in float32, or in float64."""
    return 1 if dtype.itemsize == 2 else 4


def size_of(models: list[Checkpoint], base: Checkpoint, name: str) -> torch.Tensor:
    """Largest magnitude of each entry's inputs."""
    return torch.stack([m.read(name).double().abs() for m in (*models, base)]).amax(0)


def test_every_method_says_its_laws() -> None:
    assert set(LAWS) == set(METHODS)


@every_method
@every_dtype
def test_identical_models_give_that_model(method: str, dtype: torch.dtype) -> None:
    settings = LAWS[method].identical
    if isinstance(settings, str):
        pytest.skip(settings)
    same, base = tuned(1, dtype), base_model(dtype)
    least, most = METHODS[method].models
    for count in {LAWS[method].models, *((max(2, least), 7) if most is None else ())}:
        got = fused_by(method, [same] * count, base, **settings)
        for name in FLOATING:
            assert ulps(got.read(name), same.read(name), size_of([same], base, name)) <= roundings(dtype), (name, count)


@every_method
@every_dtype
@pytest.mark.parametrize("hot", [0, 1])
def test_a_one_hot_weight_gives_that_model(method: str, dtype: torch.dtype, hot: int) -> None:
    settings = LAWS[method].one_hot
    if "weight" not in METHODS[method].parameters:
        pytest.skip("the method has no weights")
    if isinstance(settings, str):
        pytest.skip(settings)
    models, base = several(method, dtype), base_model(dtype)
    if hot >= len(models):
        pytest.skip("the method takes fewer models")
    got = fused_by(method, models, base, **{**settings, "weights": [float(i == hot) for i in range(len(models))]})
    for name in FLOATING:
        expected = models[hot].read(name)
        assert ulps(got.read(name), expected, size_of(models, base, name)) <= roundings(dtype), name


@every_method
@every_dtype
def test_close_to_float64_and_of_the_same_dtype(method: str, dtype: torch.dtype) -> None:
    laws = LAWS[method]
    models, base = several(method, dtype), base_model(dtype)
    wide: list[Checkpoint] = [Memory({n: as_double(m.read(n)) for n in m.names()}) for m in models]
    got = fused_by(method, models, base, **laws.ordinary)
    exact = fused_by(method, wide, Memory({n: as_double(base.read(n)) for n in base.names()}), **laws.ordinary)
    for name in FLOATING:
        found, expected = got.read(name), exact.read(name)
        assert found.dtype == dtype
        assert expected.dtype == torch.float64
        size = torch.maximum(size_of(models, base, name), expected.abs())
        # Computed in float32 (a few roundings of that), then rounded once to the dtype of the result.
        one = torch.finfo(dtype).eps * size / 2 + 32 * torch.finfo(torch.float32).eps * size * (dtype != torch.float64)
        off = (found.double() - expected).abs() > one + 32 * torch.finfo(torch.float64).eps * size
        allowed = max(1, found.numel() // 100) if laws.sharp and dtype != torch.float64 else 0
        assert int(off.sum()) <= allowed, name


def as_double(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


@every_method
def test_order_does_not_matter_beyond_rounding(method: str) -> None:
    laws = LAWS[method]
    if not laws.order:
        pytest.skip("the method's models have roles")
    models, base = several(method), base_model()
    forth = fused_by(method, models, base, **laws.ordinary)
    turned = {k: v[::-1] if isinstance(v, list) else v for k, v in laws.ordinary.items()}
    back = fused_by(method, models[::-1], base, **turned)
    for name in FLOATING:
        torch.testing.assert_close(forth.read(name), back.read(name), rtol=1e-5, atol=1e-6)


@every_method
@every_dtype
def test_any_range_is_a_part_of_the_whole(method: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_module, "BLOCK", 48)
    got = fused_by(method, several(method, dtype), base_model(dtype), **LAWS[method].ordinary)
    for name in ("wide", "tall", "vector"):
        whole = bytes(got.read_bytes(name))
        assert len(whole) == got.spec(name).nbytes
        for size in (8, 100, 1000, 10**6):
            assert b"".join(bytes(got.read_bytes(name, a, b)) for a, b in got.blocks(name, size)) == whole
        # Cut inside elements too.
        for begin, end in ((0, 1), (3, 3), (5, 18), (7, len(whole))):
            assert bytes(got.read_bytes(name, begin, end)) == whole[begin:end]
    assert torch.equal(got.read("wide", slice(2, 9)), got.read("wide")[2:9])


@every_method
def test_the_cut_into_blocks_does_not_matter(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    laws = LAWS[method]
    whole = fused_by(method, several(method), base_model(), **laws.ordinary)
    expected = {name: whole.read(name) for name in FLOATING}
    for block in (1, 7, 64):
        monkeypatch.setattr(fused_module, "BLOCK", block)
        got = fused_by(method, several(method), base_model(), **laws.ordinary)
        for name in FLOATING:
            if laws.cut:
                assert torch.equal(got.read(name), expected[name]), (name, block)
            else:
                torch.testing.assert_close(got.read(name), expected[name], rtol=2e-6, atol=2e-7)


@every_method
def test_the_same_bytes_on_any_number_of_threads(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_module, "BLOCK", 48)
    ids = set()
    for threads, own in [(1, 1), (2, 1), (1, 2), (8, 8)]:
        got = fuse(
            method,
            several(method),
            base=base_model() if METHODS[method].needs_base else None,
            statistics=statistics(method, several(method)),
            executor=CpuExecutor(own),
            **LAWS[method].ordinary,
        )
        save(got, tmp_path / "out", threads=threads, block=64)
        ids.add(hashlib.sha256((tmp_path / "out" / "model.safetensors").read_bytes()).hexdigest())
        read = open_local(tmp_path / "out")
        # And in whatever order the tensors are read.
        backwards = fused_by(method, several(method), base_model(), **LAWS[method].ordinary)
        for name in reversed(read.names()):
            assert bytes(read.read_bytes(name)) == bytes(backwards.read_bytes(name)), name
    assert len(ids) == 1


@every_method
def test_inputs_are_not_changed(method: str) -> None:
    models, base = several(method), base_model()
    before = [{n: m.read(n) for n in m.names()} for m in (*models, base)]
    got = fused_by(method, models, base, **LAWS[method].ordinary)
    for name in FLOATING:
        got.read(name)
        got.read(name).fill_(7)  # nor is the result one of them
    for model, tensors in zip((*models, base), before, strict=True):
        assert all(torch.equal(model.read(name), tensor) for name, tensor in tensors.items())


@every_method
def test_what_is_no_float_is_copied_from_the_first(method: str) -> None:
    models, base = several(method), base_model()
    leader = base if METHODS[method].needs_base else models[0]
    got = fused_by(method, models, base, **LAWS[method].ordinary)
    for name in ("steps", "flag"):
        assert torch.equal(got.read(name), leader.read(name))
    assert got.plan.tensors["steps"].method is None


@every_method
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_is_refused_by_name(method: str, bad: float) -> None:
    tensors = {n: m.clone() for n, m in start().items()}
    tensors["wide"][20, 3] = bad
    models = several(method)
    models[-1] = Memory(tensors, where="the bad one")
    with pytest.raises(FuseError, match=r"not finite") as caught:
        fused_by(method, models, base_model(), **LAWS[method].ordinary).read("wide")
    assert "the bad one: wide" in str(caught.value)


@pytest.mark.parametrize("method", [m for m, row in METHODS.items() if row.kernel is not None])
def test_a_kernel_gives_what_its_function_gives(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    compiled = fused_by(method, several(method), base_model(), **LAWS[method].ordinary)
    expected = {name: compiled.read(name) for name in FLOATING}
    monkeypatch.setitem(METHODS, method, replace(METHODS[method], kernel=None))
    plain = fused_by(method, several(method), base_model(), **LAWS[method].ordinary)
    for name in FLOATING:
        torch.testing.assert_close(plain.read(name), expected[name], rtol=1e-6, atol=1e-7)


def test_linear_sums_without_normalising() -> None:
    models = [Memory({"x": torch.tensor([1.0, 2.0])}), Memory({"x": torch.tensor([10.0, 20.0])})]
    assert fuse("linear", models, weights=[2, 1], normalize=False).read("x").tolist() == [12.0, 24.0]
    assert fuse("linear", models, weights=[0, 0], normalize=False).read("x").tolist() == [0.0, 0.0]
    assert fuse("linear", models, weight=3).read("x").tolist() == [5.5, 11.0]


def test_a_long_sum_does_not_lose_small_changes() -> None:
    generator = torch.Generator().manual_seed(0)
    begin = 1 + torch.rand(1000, generator=generator)
    models = [Memory({"x": begin + 1e-3 * torch.randn(1000, generator=generator)}) for _ in range(200)]
    exact = torch.stack([m.read("x").double() for m in models]).mean(0)
    assert ulps(fuse("linear", models).read("x"), exact.float(), exact) <= 1


def test_task_arithmetic_scales_and_forgets() -> None:
    base = Memory({"x": torch.tensor([1.0])})
    models = [Memory({"x": torch.tensor([3.0])}), Memory({"x": torch.tensor([0.0])})]
    assert fuse("task_arithmetic", models, base=base, scale=0.5).read("x").item() == 1.5
    assert fuse("task_arithmetic", models, base=base, weights=[1, -1]).read("x").item() == 4.0
    assert fuse("task_arithmetic", models, base=base, weights=[3, 1], normalize=True).read("x").item() == 2.25


@every_method
def test_a_function_holds_no_more_models_than_it_says(method: str) -> None:
    """A mean takes its models one at a time: what was taken before is gone."""
    if method not in {"linear", "task_arithmetic"}:
        pytest.skip("needs all of them at once")
    base = np.zeros(4, np.float32) if METHODS[method].needs_base else None
    most = most_alive(lambda blocks: METHODS[method].function(blocks, base, weight=[1.0] * COUNT), 4)
    assert most == (1 if METHODS[method].needs_base else 2)  # the sum, and what it starts from where that is a model
