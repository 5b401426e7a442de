"""Fisher-weighted means: against the formula in float64, and what the weights of entries must not do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cofuse.checkpoint import Checkpoint, Memory
from cofuse.errors import FuseError
from cofuse.fuse import METHODS, CpuExecutor, Executor, fuse
from cofuse.fuse import fused as fused_module
from cofuse.fuse.execute.cpu import compiled
from cofuse.fuse.execute.torch_device import TorchExecutor

from .alive import COUNT, most_alive

EXECUTORS = [CpuExecutor(1), TorchExecutor("cpu")]
on_both = pytest.mark.parametrize("executor", EXECUTORS, ids=["numpy", "torch"])


def drawn(seed: int, spread: float = 1.0, dtype: torch.dtype = torch.float32) -> Memory:
    generator = torch.Generator().manual_seed(seed)
    return Memory({n: (spread * torch.randn(s, generator=generator)).to(dtype) for n, s in SHAPES.items()})


def fisher_of(seed: int, scale: float = 1.0) -> Memory:
    generator = torch.Generator().manual_seed(1000 + seed)
    return Memory({n: scale * torch.randn(s, generator=generator).abs() ** 4 for n, s in SHAPES.items()})


SHAPES = {"matrix": (30, 7), "vector": (13,), "scalar": ()}


def paper(
    models: list[Checkpoint], fishers: list[Checkpoint], weights: list[float], floor: float
) -> dict[str, torch.Tensor]:
    """What the authors' code computes: the floor on the target's raw Fisher, then each divided by its norm."""
    norms = [sum((f.read(n).double() ** 2).sum() for n in SHAPES) ** 0.5 for f in fishers]
    found = {}
    for name, shape in SHAPES.items():
        above, below = torch.zeros(shape).double(), torch.zeros(shape).double()
        for i, (model, fisher) in enumerate(zip(models, fishers, strict=True)):
            diagonal = fisher.read(name).double()
            if i == 0:
                diagonal = diagonal.clamp_min(floor)
            share = weights[i] / norms[i] * diagonal
            above += share * model.read(name).double()
            below += share
        found[name] = above / below
    return found


@on_both
@settings(max_examples=25, deadline=None)
@given(
    weights=st.lists(st.floats(0.01, 10), min_size=2, max_size=5),
    floor=st.sampled_from([1e-9, 1e-6, 1e-2]),
    seed=st.integers(0, 99),
)
def test_with_the_papers_settings_it_is_the_papers_merge(
    executor: Executor, weights: list[float], floor: float, seed: int
) -> None:
    models: list[Checkpoint] = [drawn(seed + i) for i in range(len(weights))]
    fishers: list[Checkpoint] = [fisher_of(seed + i, 10.0**-i) for i in range(len(weights))]
    got = fuse(
        "fisher",
        models,
        weights=weights,
        statistics={"fisher": fishers},
        executor=executor,
        normalize_by="rms",
        floor=floor,
        floor_on="target",
    )
    for name, expected in paper(models, fishers, weights, floor).items():
        torch.testing.assert_close(got.read(name).double(), expected, rtol=1e-6, atol=1e-6)


@on_both
@pytest.mark.parametrize("floor_on", ["all", "target"])
@pytest.mark.parametrize("normalize_by", ["mean", "rms", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_models_that_agree_give_their_very_bits(
    executor: Executor, floor_on: str, normalize_by: str, dtype: torch.dtype
) -> None:
    model = drawn(5, 3.0, dtype)
    fishers: list[Checkpoint | None] = [fisher_of(i) for i in range(4)]
    got = fuse(
        "fisher",
        [model] * 4,
        weights=[0.3, 1.7, 0.0, 5.0],
        statistics={"fisher": fishers},
        executor=executor,
        normalize_by=normalize_by,
        floor_on=floor_on,
    )
    for name in SHAPES:
        assert bytes(got.read_bytes(name)) == bytes(model.read_bytes(name))


@on_both
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_one_weight_gives_that_model_to_the_bit(executor: Executor, dtype: torch.dtype) -> None:
    models: list[Checkpoint] = [drawn(i, 10.0**i, dtype) for i in range(3)]
    fishers: list[Checkpoint | None] = [fisher_of(i) for i in range(3)]
    for hot in range(3):
        weights = [2.0 if i == hot else 0.0 for i in range(3)]
        got = fuse("fisher", models, weights=weights, statistics={"fisher": fishers}, executor=executor)
        for name in SHAPES:
            assert bytes(got.read_bytes(name)) == bytes(models[hot].read_bytes(name))


@on_both
def test_equal_fishers_give_the_mean(executor: Executor) -> None:
    models: list[Checkpoint] = [drawn(i) for i in range(4)]
    for same in (fisher_of(1), Memory({n: torch.full(s, 1e-30) for n, s in SHAPES.items()})):
        got = fuse(
            "fisher", models, weights=[1, 2, 3, 4], statistics={"fisher": [same] * 4}, executor=executor, floor=0.0
        )
        mean = fuse("linear", models, weights=[1, 2, 3, 4])
        for name in SHAPES:
            torch.testing.assert_close(got.read(name), mean.read(name), rtol=1e-6, atol=1e-6)


@on_both
def test_what_no_model_depends_on_is_averaged(executor: Executor) -> None:
    models = [Memory({"x": torch.tensor([1.0, 1.0])}), Memory({"x": torch.tensor([2.0, 2.0])})]
    fishers = [Memory({"x": torch.tensor([0.0, 1.0])}), Memory({"x": torch.tensor([0.0, 3.0])})]
    for floor, floor_on in ((0.0, "all"), (1e-3, "all"), (0.0, "target")):
        got = fuse(
            "fisher",
            models,
            statistics={"fisher": fishers},
            executor=executor,
            normalize_by="none",
            floor=floor,
            floor_on=floor_on,
        ).read("x")
        assert got.tolist() == [1.5, 1.75]


@on_both
@pytest.mark.parametrize("normalize_by", ["mean", "rms"])
def test_a_fisher_times_a_billion_changes_nothing(executor: Executor, normalize_by: str) -> None:
    models: list[Checkpoint] = [drawn(i) for i in range(3)]

    def merged(scale: float, by: str = normalize_by) -> Checkpoint:
        fishers: list[Checkpoint | None] = [fisher_of(0), fisher_of(1, scale), fisher_of(2)]
        return fuse("fisher", models, statistics={"fisher": fishers}, executor=executor, normalize_by=by)

    for name in SHAPES:
        torch.testing.assert_close(merged(1e9).read(name), merged(1.0).read(name), rtol=1e-5, atol=1e-6)
    # Without a norm it owns the fuse, but for what it says nothing of.
    near = (merged(1e9, "none").read("matrix") - models[1].read("matrix")).abs() < 1e-3
    assert near.float().mean() > 0.9


def test_its_norm_is_over_the_whole_model_whatever_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    models: list[Checkpoint] = [drawn(i) for i in range(3)]
    fishers: list[Checkpoint | None] = [fisher_of(i) for i in range(3)]
    whole = fuse("fisher", models, statistics={"fisher": fishers})
    expected = {n: whole.read(n) for n in SHAPES}
    monkeypatch.setattr(fused_module, "BLOCK", 16)
    for together in (1, 3):
        for executor in (CpuExecutor(2), TorchExecutor("cpu", together=together)):
            got = fuse("fisher", models, statistics={"fisher": fishers}, executor=executor)
            for name in SHAPES:
                torch.testing.assert_close(got.read(name), expected[name], rtol=1e-6, atol=1e-7)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["all", "target"]), st.sampled_from([np.float32, np.float64]))
def test_the_kernel_is_its_functions_twin(seed: int, floor_on: str, dtype: type) -> None:
    rng = np.random.default_rng(seed)
    blocks = [rng.normal(size=100).astype(dtype) for _ in range(3)]
    fishers = [(np.abs(rng.normal(size=100)) ** 6 * (rng.random(100) > 0.2)).astype(dtype) for _ in range(3)]
    found = [
        function(
            (b.copy() for b in blocks),
            None,
            fisher=(f.copy() for f in fishers),
            known=[0.1, 2.0, 3.0],
            weight=[1.0, 0.0, 0.5],
            floor=1e-4,
            floor_on=floor_on,
        )
        for function in (compiled(METHODS["fisher"]), METHODS["fisher"].function)
    ]
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("kind", ["kernel", "function"])
def test_models_come_one_at_a_time_and_none_is_kept(kind: str) -> None:
    function = compiled(METHODS["fisher"]) if kind == "kernel" else METHODS["fisher"].function

    def run(blocks: Iterator[Any]) -> None:
        fishers = (np.ones(64, np.float32) for _ in range(COUNT))
        function(blocks, None, fisher=fishers, known=[1.0] * COUNT, weight=[1.0] * COUNT)

    assert most_alive(run, 64) == 1  # the one before, until the next has been read


@on_both
@pytest.mark.parametrize(
    ("bad", "said"), [(-1e-9, "below 0"), (float("nan"), "not finite"), (float("inf"), "not finite")]
)
def test_what_is_no_fisher_is_refused_by_name(executor: Executor, bad: float, said: str) -> None:
    wrong = {n: fisher_of(1).read(n) for n in SHAPES}
    wrong["matrix"][3, 4] = bad
    fishers: list[Checkpoint | None] = [fisher_of(0), Memory(wrong, where="their fisher")]
    for normalize_by in ("none", "mean"):
        got = fuse(
            "fisher",
            [drawn(0), drawn(1)],
            statistics={"fisher": fishers},
            executor=executor,
            normalize_by=normalize_by,
        )
        with pytest.raises(FuseError, match=said) as caught:
            got.read("matrix")
        assert "their fisher: matrix" in str(caught.value)
        assert "at element 25" in str(caught.value)


def test_a_fisher_of_nothing_but_noughts_is_refused() -> None:
    nothing = Memory({n: torch.zeros(s) for n, s in SHAPES.items()})
    with pytest.raises(FuseError, match="zero everywhere") as caught:
        fuse("fisher", [drawn(0), drawn(1)], statistics={"fisher": [fisher_of(0), nothing]}).read("vector")
    assert "model 2" in str(caught.value)


def test_weights_that_are_all_nought_are_refused() -> None:
    with pytest.raises(FuseError, match="sum to zero"):
        fuse("fisher", [drawn(0), drawn(1)], weights=[0, 0], statistics={"fisher": [fisher_of(0), fisher_of(1)]})
