"""TSV-Merge and isotropic merging against singular value decompositions in float64."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from cofuse.checkpoint import Checkpoint, Memory, map_each, open_local, save
from cofuse.fuse import CpuExecutor, fuse
from cofuse.fuse.execute import cpu

SHAPES = [(40, 90), (90, 40), (64, 64), (12, 5, 3, 3), (7, 3)]


def inputs(shape: tuple[int, ...], count: int = 3) -> tuple[torch.Tensor, list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(len(shape))
    base = torch.randn(shape, generator=generator)
    return base, [base + 0.1 * torch.randn(shape, generator=generator) for _ in range(count)]


def changes(base: torch.Tensor, models: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [(t.double() - base.double()).reshape(base.shape[0], -1) for t in models]


def iso_c(base: torch.Tensor, models: list[torch.Tensor], weight: list[float]) -> torch.Tensor:
    total = sum(w * d for w, d in zip(weight, changes(base, models), strict=True))
    u, s, v = torch.linalg.svd(total, full_matrices=False)
    return base.double() + (s.mean() * u @ v).reshape(base.shape)


def tsv(base: torch.Tensor, models: list[torch.Tensor], weight: list[float]) -> torch.Tensor:
    parts = [torch.linalg.svd(d, full_matrices=False) for d in changes(base, models)]
    k = len(parts[0][1]) // len(models)
    u = torch.cat([p[0][:, :k] for p in parts], 1)
    s = torch.cat([w * p[1][:k] for w, p in zip(weight, parts, strict=True)])
    v = torch.cat([p[2][:k] for p in parts], 0)
    u_u, _, v_u = torch.linalg.svd(u, full_matrices=False)
    u_v, _, v_v = torch.linalg.svd(v, full_matrices=False)
    return base.double() + (u_u @ v_u @ torch.diag(s) @ u_v @ v_v).reshape(base.shape)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("method", ["iso_c", "tsv"])
def test_is_what_singular_value_decompositions_give(method: str, shape: tuple[int, ...]) -> None:
    base, tuned = inputs(shape)
    weight = [1.0, 0.5, 2.0]
    models: list[Checkpoint] = [Memory({"x": t}) for t in tuned]
    got = fuse(method, models, base=Memory({"x": base}), weights=weight).read("x")
    expected = {"iso_c": iso_c, "tsv": tsv}[method](base, tuned, weight)
    torch.testing.assert_close(got.double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method", ["iso_c", "tsv"])
@pytest.mark.parametrize("shape", [(9,), (), (1, 9), (9, 1)])
def test_vectors_are_averaged(method: str, shape: tuple[int, ...]) -> None:
    base, tuned = inputs(shape)
    models: list[Checkpoint] = [Memory({"x": t}) for t in tuned]
    got = fuse(method, models, base=Memory({"x": base}), weights=[1.0, 0.0, 1.0], scale=0.5).read("x")
    torch.testing.assert_close(got, base + 0.25 * (tuned[0] - base + tuned[2] - base))


def test_the_spectrum_is_flat() -> None:
    _, tuned = inputs((30, 50))
    models: list[Checkpoint] = [Memory({"x": t}) for t in tuned]
    got = fuse("iso_c", models, base=Memory({"x": torch.zeros(30, 50)})).read("x")
    values = torch.linalg.svdvals(got.double())
    torch.testing.assert_close(values, torch.full_like(values, float(values.mean())), rtol=1e-5, atol=0)
    total = torch.linalg.svdvals(sum(t.double() for t in tuned))  # type: ignore[arg-type]
    assert values.mean() == pytest.approx(float(total.mean()), rel=1e-6)


def test_directions_that_nobody_changed_stay_unchanged() -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(40, 3, generator=generator), torch.randn(3, 60, generator=generator)
    base = torch.zeros(40, 60)
    for method in ("iso_c", "tsv"):
        models: list[Checkpoint] = [Memory({"x": left @ right}), Memory({"x": 2 * left @ right})]
        got = fuse(method, models, base=Memory({"x": base})).read("x").double()
        values = torch.linalg.svdvals(got)
        assert int((values > 1e-4 * values[0]).sum()) == 3, method
        # What is there lies in the space that the models changed.
        basis = torch.linalg.qr(left.double())[0]
        torch.testing.assert_close(basis @ (basis.T @ got), got, rtol=0, atol=1e-5)


def test_tsv_keeps_tasks_apart_that_do_not_interfere() -> None:
    # Of rank one each and orthogonal to each other: nothing to decorrelate, both come whole.
    base = torch.zeros(6, 4)
    one, two = torch.zeros(6, 4), torch.zeros(6, 4)
    one[0, 1], two[3, 2] = 2.0, -3.0
    got = fuse("tsv", [Memory({"x": one}), Memory({"x": two})], base=Memory({"x": base})).read("x")
    torch.testing.assert_close(got, one + two, rtol=0, atol=1e-6)


def test_tsv_gives_a_lone_model_back() -> None:
    base, tuned = inputs((30, 50))
    models: list[Checkpoint] = [Memory({"x": t}) for t in tuned]
    got = fuse("tsv", models, base=Memory({"x": base}), weights=[0, 1, 0]).read("x")
    torch.testing.assert_close(got, tuned[1], rtol=0, atol=3e-7)


@pytest.mark.slow  # failed once in a hundred runs on a busy machine, for tsv, and the cause is not known
@pytest.mark.parametrize("method", ["iso_c", "tsv"])
def test_the_bytes_do_not_depend_on_threads(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    base, tuned = inputs((300, 400), 2)
    models: list[Checkpoint] = [Memory({"x": t, "y": t.T.contiguous()}) for t in tuned]
    start = Memory({"x": base, "y": base.T.contiguous()})
    found = set()
    monkeypatch.setattr(cpu, "LARGE", 1000)
    for blas in (1, 2):
        with threadpool_limits(blas, user_api="blas"):
            got = fuse(method, models, base=start, executor=CpuExecutor(2))
            found.add(tuple(bytes(x) for x in map_each(got.read_bytes, ["x", "y"], 2)))
            # The limit is gone when nobody is inside.
            assert [p["num_threads"] for p in threadpool_info() if "numpy" in p["filepath"]] == [blas]
    assert len(found) == 1


@pytest.mark.parametrize("method", ["iso_c", "tsv"])
@pytest.mark.parametrize(("threads", "dtype"), [(1, torch.float32), (2, torch.bfloat16)])
def test_memory_is_a_few_times_the_tensor(
    method: str, threads: int, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "LARGE", 1000)
    shape = (8000, 500)
    rng = np.random.default_rng(0)
    for i in range(5):
        tensors = {name: torch.from_numpy(rng.standard_normal(shape, np.float32)).to(dtype) for name in "xy"}
        save(Memory(tensors), tmp_path / str(i))
    models = [open_local(tmp_path / str(i)) for i in range(5)]
    lazy = fuse(method, models[1:], base=models[0])
    tracemalloc.start()
    map_each(lambda name: len(lazy.read_bytes(name)), ["x", "y"], threads)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak <= 6 * 4 * 8000 * 500
