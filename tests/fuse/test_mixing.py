"""Combinations and inner products from stored blocks, beside those from floats."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cofuse.checkpoint import Memory
from cofuse.checkpoint.floats import as_floats, as_stored
from cofuse.errors import FuseError
from cofuse.fuse import fuse
from cofuse.fuse.execute import cpu
from cofuse.fuse.kernels import mixing
from cofuse.fuse.methods import METHODS
from cofuse.fuse.methods.gram import combine, terms

KINDS = {"BF16": np.uint16, "F32": np.float32}


def blocks(code: str, count: int, size: int, seed: int, scale: float = 0.01) -> npt.NDArray[Any]:
    rng = np.random.default_rng(seed)
    base = rng.normal(size=size)
    rows = [as_stored((base + scale * rng.normal(size=size)).astype(np.float32), code) for _ in range(count)]
    return np.stack(rows).view(KINDS[code])


def floats(rows: npt.NDArray[Any], code: str) -> list[npt.NDArray[Any]]:
    return [as_floats(row.view(np.uint8), code, np.float32).copy() for row in rows]


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(sorted(KINDS)),
    st.lists(st.sampled_from([0.0, 1.0, 0.25, -3.0, 1 / 3, 1e-3, 7.5]), min_size=1, max_size=6).filter(any),
    st.sampled_from([1, 2, 1023, 1024, 1025, 5000]),
    st.integers(0, 1000),
)
def test_the_combination_is_that_of_floats_bit_for_bit(code: str, shares: list[float], size: int, seed: int) -> None:
    rows = blocks(code, len(shares), size, seed)
    out = np.empty(size, rows.dtype)
    assert mixing.combine(rows, shares, *terms(shares), out)
    expected = as_stored(combine(floats(rows, code), None, shares), code)
    assert out.tobytes() == expected.tobytes()


@pytest.mark.parametrize("code", sorted(KINDS))
@pytest.mark.parametrize("based", [False, True])
@pytest.mark.parametrize("size", [1, 1000, 1024, 200_000])
def test_the_products_are_those_of_float64(code: str, based: bool, size: int) -> None:
    rows = blocks(code, 4, size, 7)
    wide = np.stack(floats(rows, code)).astype(np.float64)
    vectors = wide[1:] - wide[0] if based else wide
    expected = (vectors @ vectors.T)[np.tril_indices(len(vectors))]
    lengths = np.sqrt(np.diag(vectors @ vectors.T))
    found = mixing.products(rows, based)
    assert found is not None
    # Each lane adds 64 products in float32 before they are added in float64.
    assert (np.abs(found - expected) <= 65 * 2**-24 * np.outer(lengths, lengths)[np.tril_indices(len(vectors))]).all()


@pytest.mark.parametrize("code", sorted(KINDS))
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("at", [0, 1500, 2999])
@pytest.mark.parametrize("row", [0, 2])
def test_what_is_not_finite_is_noticed_even_in_a_model_of_no_weight(code: str, bad: float, at: int, row: int) -> None:
    rows = blocks(code, 3, 3000, 1)
    rows[row, at] = np.float32(bad) if code == "F32" else np.float32(bad).view(np.uint32) >> 16
    out = np.empty(3000, rows.dtype)
    assert not mixing.combine(rows, [0.0, 1.0, 0.0], *terms([0.0, 1.0, 0.0]), out)
    assert mixing.products(rows, False) is None
    assert mixing.products(rows, True) is None


@pytest.mark.parametrize("code", sorted(KINDS))
def test_a_result_too_large_for_its_dtype_is_noticed(code: str) -> None:
    rows = np.stack([as_stored(np.full(10, 3e38, np.float32), code) for _ in range(2)]).view(KINDS[code])
    assert not mixing.combine(rows, [1.0, 1.0], *terms([1.0, 1.0]), np.empty(10, rows.dtype))


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=50))
@settings(deadline=None)
def test_rounding_to_bfloat16_is_that_of_the_plain_way(values: list[float]) -> None:
    given_ = np.array(values, np.float32)
    stored, finite = mixing.narrow(given_)
    assert stored.tobytes() == as_stored(given_, "BF16").tobytes()
    back, _ = mixing.widen(stored.view(np.uint16))
    assert back.tobytes() == as_floats(stored, "BF16", np.float32).tobytes()
    assert finite == bool(np.isfinite(back).all())


MIXED = [name for name, row in METHODS.items() if row.mix is not None]


def models(dtype: torch.dtype, count: int) -> tuple[Memory, list[Memory]]:
    torch.manual_seed(0)
    base = torch.randn(700, 900)
    tuned = [Memory({"x": (base + 0.01 * torch.randn(700, 900)).to(dtype)}) for _ in range(count)]
    return Memory({"x": base.to(dtype)}), tuned


@pytest.mark.parametrize("method", MIXED)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_method_gives_the_same_bytes_without_the_short_way(
    method: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = METHODS[method]
    base, tuned = models(dtype, max(row.models[0], min(4, row.models[1] or 4)))
    own = {"slerp": {"t": 0.3}, "nuslerp": {"weight": (1.0, 2.0)}, "multislerp": {"weight": (1.0,) * 4}}.get(method, {})
    monkeypatch.setattr(cpu, "PAYS", 0)
    fast = fuse(method, tuned, base=base if row.needs_base else None, **own)
    known = fast.known("x") if row.survey else None
    quick = bytes(fast.read_bytes("x"))
    slow = fuse(method, tuned, base=base if row.needs_base else None, **own)
    # The same survey: its sums are added in another order, which is not what this is about.
    slow._surveys[slow.tensor("x").scope] = known
    monkeypatch.setattr(cpu.CpuExecutor, "combine", lambda *_: False)
    assert quick == bytes(slow.read_bytes("x"))


@pytest.mark.parametrize("held", [1, 1 << 20])
def test_pieces_are_the_whole(held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    base, tuned = models(torch.bfloat16, 3)
    monkeypatch.setattr(cpu, "PAYS", 0)
    whole = bytes(fuse("task_arithmetic", tuned, base=base).read_bytes("x"))
    monkeypatch.setattr(cpu, "HELD", held)
    fused = fuse("task_arithmetic", tuned, base=base)
    assert (
        b"".join(bytes(fused.read_bytes("x", a, a + 100_002)) for a in range(0, len(whole) - 100_002, 100_002))
        == (whole[: (len(whole) - 1) // 100_002 * 100_002])
    )
    assert bytes(fused.read_bytes("x", 3, 77)) == whole[3:77]


def test_a_value_that_is_not_finite_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "PAYS", 0)
    base, tuned = models(torch.bfloat16, 2)
    broken = tuned[1].read("x").clone()
    broken[3, 5] = torch.inf
    with pytest.raises(FuseError, match="element 2705"):
        fuse("task_arithmetic", [tuned[0], Memory({"x": broken})], base=base).read("x")


def test_a_fuse_in_a_fuse_does_not_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    base, tuned = models(torch.bfloat16, 3)
    executor = cpu.CpuExecutor()

    def nested() -> bytes:
        inner = fuse("linear", tuned[:2], executor=executor)
        return bytes(fuse("task_arithmetic", [inner, tuned[2]], base=base, executor=executor).read_bytes("x"))

    plain = nested()
    monkeypatch.setattr(cpu, "PAYS", 0)
    assert nested() == plain
