"""A patch of low rank is the nearest of its rank, says what it leaves, and gives the same bits everywhere."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint.models import same_bits
from hypothesis import given
from hypothesis import strategies as st

from cofuse.checkpoint import Memory, TensorSpec, content_id, tensor_id
from cofuse.checkpoint.floats import as_floats, as_stored
from cofuse.errors import PatchError
from cofuse.patch import LowRank, Product, apply, make

from .models import array, finetuned, floats

SIZES = {"up": (40, 30), "conv": (20, 6, 3, 2), "bias": (40,), "thin": (50, 2)}
MATRICES = ("up", "conv")


def pair(dtype: torch.dtype = torch.float32) -> tuple[Memory, Memory]:
    base = floats(0, SIZES, dtype)
    return Memory(base, where="base"), Memory(finetuned(base, 1, 0.1), where="tuned")


def tail(change: np.ndarray, rank: int) -> float:
    """What the best of a rank leaves: the other singular values (Eckart and Young)."""
    s = np.linalg.svd(change.reshape(len(change), -1), compute_uv=False)
    return float(np.sqrt(np.square(s[rank:]).sum()))


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_it_leaves_the_tail_of_the_singular_values(rank: int, tmp_path: Path) -> None:
    base, tuned = pair()
    patch = make(base, tuned, tmp_path / "x.patch", LowRank(rank=rank))
    applied = apply(base, patch)
    for name in MATRICES:
        change = patch.manifest.tensors[name]
        best = tail(array(tuned, name) - array(base, name), rank)
        left = array(tuned, name) - array(applied, name)
        assert (change.how, change.rank) == ("product", rank)
        assert np.linalg.norm(left) <= change.left <= 1.001 * best
        assert np.abs(left).max() <= change.most <= 1.001 * np.abs(left).max()
    for name in ("bias", "thin"):
        if patch.manifest.tensors[name].how == "edit":
            assert same_bits(applied.read(name), tuned.read(name))
    assert patch.manifest.tensors["thin"].how == ("product" if rank == 1 else "edit")
    assert content_id(applied) == patch.result != patch.manifest.tuned


@pytest.mark.parametrize("error", [0.5, 0.1, 0.01])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_takes_the_least_rank_that_meets_an_error(error: float, dtype: torch.dtype, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    base = torch.from_numpy(rng.standard_normal((60, 50))).to(dtype)
    change = sum(2.0**-k * np.outer(rng.standard_normal(60), rng.standard_normal(50)) for k in range(30))
    before, after = Memory({"w": base.float()}), Memory({"w": base.float() + torch.from_numpy(change).float()})
    if dtype == torch.bfloat16:
        before, after = (Memory({"w": cp.read("w").bfloat16()}) for cp in (before, after))
    patch = make(before, after, tmp_path / "x.patch", LowRank(error=error))
    said = patch.manifest.tensors["w"]
    assert said.norm is not None
    if said.how == "product":
        whole = array(after, "w") - array(before, "w")
        if dtype == torch.float32:
            assert said.left <= 1.001 * error * said.norm
            assert said.rank == 1 or tail(whole, said.rank - 1) > error * np.linalg.norm(whole)
        else:  # what the result's own rounding adds cannot be helped
            rounding = np.linalg.norm(np.spacing(np.abs(array(after, "w")).astype(np.float32)).astype(float)) * 2**15
            assert said.left <= 1.001 * error * said.norm + rounding
    else:
        assert said.left == 0  # edits were shorter


def test_both_bound_the_rank(tmp_path: Path) -> None:
    patch = make(*pair(), tmp_path / "x.patch", LowRank(rank=2, error=1e-6))
    assert {patch.manifest.tensors[name].rank for name in MATRICES} == {2}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_any_range_is_that_of_the_whole(dtype: torch.dtype, tmp_path: Path) -> None:
    base, tuned = pair(dtype)
    patch = make(base, tuned, tmp_path / "x.patch", LowRank(rank=1))
    applied = apply(base, patch)
    for name in SIZES:
        whole = bytes(applied.read_bytes(name))
        size = len(whole)
        for start, stop in [(0, 1), (1, 9), (3, size // 2), (size // 3, size // 3 + 1), (size - 5, size), (7, 7)]:
            assert bytes(applied.read_bytes(name, start, stop)) == whole[start:stop]
        assert b"".join(bytes(applied.read_bytes(name, a, b)) for a, b in applied.blocks(name, 16)) == whole


@given(st.integers(1, 6), st.integers(1, 9), st.integers(1, 5), st.sampled_from(["F32", "BF16", "F64"]), st.data())
def test_products_are_summed_rank_by_rank(rows: int, columns: int, rank: int, dtype: str, data: st.DataObject) -> None:
    """The slow twin: one element after another, every operation rounded to float32."""
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((rank, columns), (rows, rank)))
    product, spec = Product(a, b, 0.3), TensorSpec(dtype, (rows, columns))
    old = as_stored(rng.standard_normal(rows * columns).astype(np.float64 if dtype == "F64" else np.float32), dtype)
    working = np.float64 if dtype == "F64" else np.float32
    new = as_floats(old, dtype, working).copy()
    for i in range(rows):
        for j in range(columns):
            total = np.float32(0)
            for k in range(rank):
                total = np.float32(total + np.float32(b[i, k] * a[k, j]))
            new[i * columns + j] = working(new[i * columns + j] + np.float32(total * np.float32(0.3)))
    assert product.play(old.data, spec, 0) == as_stored(new, dtype).tobytes()


def test_rows_wider_than_a_block_are_summed_alike() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 70_000)).astype(np.float32), rng.standard_normal((3, 2)).astype(np.float32)
    old = np.zeros(4 * 3 * 70_000, np.uint8)
    got = np.frombuffer(Product(a, b).play(old.data, TensorSpec("F32", (3, 70_000)), 0), np.float32)
    assert np.array_equal(got.reshape(3, -1), b[:, :1] * a[:1] + b[:, 1:] * a[1:])


def test_a_change_of_low_rank_is_found(tmp_path: Path) -> None:
    base = floats(0, {"w": (64, 48)})
    product = torch.outer(torch.arange(64.0), torch.arange(48.0)) / 100
    patch = make(Memory(base), Memory({"w": base["w"] + product}), tmp_path / "x.patch", LowRank(rank=4))
    said = patch.manifest.tensors["w"]
    assert said.norm is not None
    assert said.left < 1e-6 * said.norm


def test_factors_say_what_they_are(tmp_path: Path) -> None:
    base, tuned = pair(torch.bfloat16)
    patch = make(base, tuned, tmp_path / "x.patch", LowRank(rank=1))
    product, said = patch.product("up"), patch.manifest.tensors["up"]
    assert (product.dtype, product.a.shape, product.b.shape) == ("BF16", (1, 30), (40, 1))
    stored = Memory({"a": torch.from_numpy(product.a).bfloat16()})
    assert tensor_id(stored, "a") == said.a


def test_on_another_base_the_same_is_added(tmp_path: Path) -> None:
    base, tuned = pair()
    patch = make(base, tuned, tmp_path / "x.patch", LowRank(rank=2), values=True)
    other = Memory(floats(50, SIZES))
    applied = apply(other, patch, anywhere=True)
    for name in MATRICES:
        same = array(apply(base, patch), name) - array(base, name)
        assert np.allclose(array(applied, name) - array(other, name), same, atol=1e-6)


def test_what_is_no_rank_is_refused(tmp_path: Path) -> None:
    base, tuned = pair()
    for wrong in ({}, {"rank": 0}, {"error": 0.0}, {"error": math.nan}, {"error": 1.0}):
        with pytest.raises(PatchError):
            LowRank(**wrong)  # type: ignore[arg-type]
    broken = Memory({**{n: tuned.read(n) for n in SIZES}, "up": torch.full(SIZES["up"], math.inf)})
    with pytest.raises(PatchError, match="not finite"):
        make(base, broken, tmp_path / "x.patch", LowRank(rank=1))
    assert list(tmp_path.iterdir()) == []
