"""Executors: the same result wherever blocks are computed, within what `TOLERANCE` says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cofuse.checkpoint import Checkpoint, Memory, save
from cofuse.errors import FuseError
from cofuse.fuse import METHODS, CpuExecutor, fuse
from cofuse.fuse import fused as fused_module
from cofuse.fuse.execute import executor_for
from cofuse.fuse.execute.torch_device import TOLERANCE, TorchExecutor

from .laws import LAWS, statistics
from .test_methods import FLOATING, base_model, several, size_of, start

every_method = pytest.mark.parametrize("method", METHODS)
DTYPES = [torch.float32, torch.bfloat16, torch.float64]
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU here")),
]


def compare(method: str, executor: TorchExecutor, dtype: torch.dtype) -> None:
    base, models = base_model(dtype), several(method, dtype)
    settings: dict[str, Any] = {
        **LAWS[method].ordinary,
        "base": base if METHODS[method].needs_base else None,
        "statistics": statistics(method, models),
    }
    expected = fuse(method, models, executor=CpuExecutor(1), **settings)
    got = fuse(method, models, executor=executor, **settings)
    for name in FLOATING:
        found, exact = got.read(name), expected.read(name)
        assert found.dtype == exact.dtype
        assert found.shape == exact.shape
        size = torch.maximum(size_of(models, base, name), exact.double().abs())
        working = TOLERANCE if dtype != torch.float64 else 1e-12
        off = (found.double() - exact.double()).abs() > (working + torch.finfo(dtype).eps) * size
        # An entry at a threshold may fall on its other side.
        assert int(off.sum()) <= (max(1, found.numel() // 100) if LAWS[method].sharp else 0), name


@every_method
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("device", DEVICES)
def test_a_device_gives_what_the_processor_gives(method: str, dtype: torch.dtype, device: str) -> None:
    compare(method, TorchExecutor(device, threads=2), dtype)


@every_method
@pytest.mark.parametrize("device", DEVICES)
def test_blocks_that_are_computed_together(method: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_module, "BLOCK", 48)
    for together in (1, 3):
        compare(method, TorchExecutor(device, threads=2, together=together), torch.float32)


@pytest.mark.parametrize("device", DEVICES)
def test_any_range_is_a_part_of_the_whole(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_module, "BLOCK", 16)
    executor = TorchExecutor(device, together=3)
    whole = bytes(fuse("linear", several("linear"), executor=CpuExecutor()).read_bytes("wide"))
    got = fuse("linear", several("linear"), executor=executor)
    for begin, end in ((0, len(whole)), (5, 18), (1000, 1001), (130, 700), (3, 3), (0, 64)):
        assert bytes(got.read_bytes("wide", begin, end)) == whole[begin:end]
    # Another fuse by the same executor is not given the last one's blocks.
    other = fuse("linear", several("linear")[:1], executor=executor)
    assert torch.equal(other.read("wide"), several("linear")[0].read("wide"))


@pytest.mark.parametrize("device", DEVICES)
def test_every_stored_dtype(device: str) -> None:
    generator = torch.Generator().manual_seed(3)
    values = torch.randn(500, generator=generator)
    for dtype in (torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2):
        models: list[Checkpoint] = [Memory({"x": (values * (1 + i)).to(dtype)}) for i in range(2)]
        expected = fuse("linear", models, executor=CpuExecutor())
        got = fuse("linear", models, executor=TorchExecutor(device))
        assert bytes(got.read_bytes("x")) == bytes(expected.read_bytes("x"))


@pytest.mark.parametrize("device", DEVICES)
def test_many_threads_write_the_same_bytes(device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_module, "BLOCK", 1000)
    models: list[Checkpoint] = [Memory({"x": torch.randn(50_000), "y": torch.randn(70, 30)}) for _ in range(3)]
    written = set()
    for threads in (1, 4):
        got = fuse("linear", models, executor=TorchExecutor(device))
        save(got, tmp_path / "out", threads=threads, block=12_000)
        written.add((tmp_path / "out" / "model.safetensors").read_bytes())
    assert len(written) == 1


@every_method
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_is_refused_by_name(method: str, bad: float) -> None:
    tensors = {n: t.clone() for n, t in start().items()}
    tensors["wide"][20, 3] = bad
    models = several(method)
    models[-1] = Memory(tensors, where="the bad one")
    base = base_model() if METHODS[method].needs_base else None
    given: dict[str, Any] = {**LAWS[method].ordinary, "statistics": statistics(method, models)}
    with pytest.raises(FuseError, match="not finite") as caught:
        fuse(method, models, base=base, executor=TorchExecutor("cpu"), **given).read("wide")
    assert "the bad one: wide" in str(caught.value)
    assert "at element 223" in str(caught.value)


def test_a_result_too_large_for_its_dtype_is_refused() -> None:
    models: list[Checkpoint] = [Memory({"x": torch.full((3,), 60000.0).half()})] * 2
    with pytest.raises(FuseError, match="too large"):
        fuse("linear", models, normalize=False, executor=TorchExecutor("cpu")).read("x")


def test_the_executor_of_a_device() -> None:
    assert isinstance(executor_for("cpu"), CpuExecutor)
    for name in ("cuda:99", "abacus", "meta"):
        with pytest.raises(FuseError, match="no such device"):
            executor_for(name)
