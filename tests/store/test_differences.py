"""The numbers of a diff beside a slow twin in float64, and what is never read."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from histories import model
from hypothesis import given
from hypothesis import strategies as st
from odd_folders import ODD, single, write_weights

from cofuse.checkpoint import Hashed, Memory, open_local
from cofuse.errors import CofuseError
from cofuse.store import Store
from cofuse.store.differences import Difference, changes, differences, tensor_changes
from cofuse.store.parts import Trees, Whole

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]
INTEGERS = [torch.int8, torch.uint8, torch.int32, torch.int64, torch.bool]


def one(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor | None = None) -> Difference:
    like = None if c is None else Memory({"w": c})
    return differences(Memory({"w": a}), Memory({"w": b}), like=like, threads=1).tensors[0]


@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS], ids=str)
def test_like_the_slow_twin(dtype: torch.dtype) -> None:
    source = torch.Generator().manual_seed(0)
    a = (torch.randn(700, 900, generator=source) * 20).clamp(-100, 100)  # more than one block
    b = torch.where(torch.rand(700, 900, generator=source) < 0.3, a + torch.randn(700, 900, generator=source) * 5, a)
    c = (a + torch.randn(700, 900, generator=source)).clamp(-100, 100)
    if dtype == torch.uint8:
        a, b, c = a.abs(), b.abs(), c.abs()
    if dtype == torch.bool:
        a, b, c = a > 0, b > 0, c > 0
    a, b, c = a.to(dtype), b.to(dtype), c.to(dtype)
    x, y, z = (t.to(torch.float64) for t in (a, b, c))
    found = one(a, b, c)
    assert found.status == "changed"
    assert found.relative == pytest.approx(((y - x).norm() / x.norm()).item(), rel=1e-12)
    assert found.fraction == (x != y).double().mean().item()
    assert found.largest == (y - x).abs().max().item()
    cosine = ((y - x) * (z - x)).sum() / ((y - x).norm() * (z - x).norm())
    assert found.cosine == pytest.approx(cosine.item(), rel=1e-9)


def test_a_change_of_one_bit_is_seen() -> None:
    a = torch.zeros(2_000_000)
    b = a.clone()
    b[-1] = 5e-45  # the smallest there is
    assert one(a, b).fraction == 5e-7
    assert one(torch.tensor([0.0]), torch.tensor([-0.0])).fraction == 1.0  # other bytes, the same number


def test_zero_and_what_is_not_finite() -> None:
    assert one(torch.zeros(3), torch.ones(3)).relative == math.inf
    nan, inf = math.nan, math.inf
    found = one(torch.tensor([3.0, nan, 4.0, inf]), torch.tensor([3.0, nan, 4.5, 1.0]))
    assert (found.relative, found.largest, found.strange, found.fraction) == (0.1, 0.5, 2, 0.5)
    assert not differences(Memory({"w": torch.tensor([nan])}), Memory({"w": torch.tensor([nan])})).tensors


def test_statuses_and_order() -> None:
    before = model({"same": 1, "small": 1, "large": 1, "gone": 1, "shape": torch.ones(3), "kind": torch.ones(4)})
    after = model(
        {
            "same": 1,
            "small": 1.1,
            "large": 3,
            "new": 1,
            "shape": torch.ones(4),
            "kind": torch.full((4,), 2, dtype=torch.int8),
        }
    )
    found = differences(before, after)
    assert [(d.name, d.status) for d in found.tensors] == [
        ("new", "added"),
        ("gone", "removed"),
        ("shape", "reshaped"),
        ("large", "changed"),
        ("kind", "retyped"),
        ("small", "changed"),
    ]
    assert found.same == 1
    numbers = {d.name: d.relative for d in found.tensors}
    assert (numbers["new"], numbers["shape"], numbers["kind"], numbers["large"]) == (None, None, 1.0, 2.0)
    whole = math.sqrt((6 * 2**2 + 4 * 1 + 6 * 0.1**2) / 16)
    assert found.relative == pytest.approx(whole, rel=1e-6)


def test_tied_names(store: Store) -> None:
    w = torch.ones(2)
    tied, apart = Memory({"emb": w, "head": w}), Memory({"emb": w, "head": torch.tensor([1.0, 3.0])})
    assert differences(tied, tied).same == 1
    assert [d.name for d in differences(tied, apart).tensors] == ["head"]
    assert [d.name for d in differences(apart, tied).tensors] == ["head"]


@given(st.lists(st.sampled_from(["same", "changed", "added", "removed"]), max_size=12))
def test_ids_and_bytes_agree(kinds: list[str]) -> None:
    before = model({f"{k}": 1 for k, kind in enumerate(kinds) if kind != "added"} | {"x": 0})
    after = model(
        {f"{k}": 2 if kind == "changed" else 1 for k, kind in enumerate(kinds) if kind != "removed"} | {"x": 0}
    )
    found = differences(before, after, threads=1)
    known = [Hashed(side) for side in (before, after)]
    for side in known:
        side.tensor_ids(threads=1)
    assert differences(*known, threads=1) == found
    assert tensor_changes(*known) == {d.name: d.status for d in found.tensors}
    assert {f"{k}": kind for k, kind in enumerate(kinds) if kind != "same"} == {d.name: d.status for d in found.tensors}


def test_every_dtype_in_a_store_and_on_disk(store: Store, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        (tmp_path / name).mkdir()
        single(tmp_path / name)
        write_weights(tmp_path / name / "model.safetensors", ODD, {"format": "pt"}, seed)
        store.commit(tmp_path / name, message=name)
    stored = [store.checkpoint(rev) for rev in ("main~1", "main")]
    on_disk = [open_local(tmp_path / name) for name in "ab"]
    found = differences(*stored)
    assert {d.name for d in found.tensors} == {name for name, spec in ODD.items() if spec.nbytes}
    for pair in (on_disk, (stored[0], on_disk[1]), (on_disk[0], stored[1])):
        assert differences(*pair) == found
    assert differences(*stored, threads=7) == found
    assert differences(stored[0], on_disk[0]).tensors == ()
    opaque = {d.name for d in found.tensors if d.relative is None}
    assert opaque == {"f4", "complex", "f64"}  # random float64 are too large to be squared


def test_equal_ids_are_never_read(store: Store) -> None:
    store.commit(model({"a": 1, "b": 1.5}), message="one")
    store.commit(model({"a": 1, "b": 2}), message="two")
    path = store.objects.path(store.checkpoint("main").tensor_ids()["a"])
    path.chmod(0o644)
    path.write_bytes(b"damaged")
    assert [d.name for d in differences(store.checkpoint("main~1"), store.checkpoint("main")).tensors] == ["b"]
    assert [d.name for d in differences(store.checkpoint("main"), model({"a": 1, "b": 1.5})).tensors] == ["b"]
    with pytest.raises(CofuseError):
        differences(store.checkpoint("main"), model({"a": 2, "b": 2}))


def test_all_files_of_a_version(store: Store, tmp_path: Path) -> None:
    model({"a": 1}).save(tmp_path / "m")
    for value in (1, 2):
        model({"a": value}).save(tmp_path / "m" / "vae")
        store.commit(tmp_path / "m", message=str(value))
    trees = Trees(store.objects)
    before, after = (
        Whole(trees.parts(trees.load(store.load_commit(rev).tree), rev), rev) for rev in ("main~1", "main")
    )
    assert tensor_changes(before, after) == {"vae/model.safetensors: a": "changed"}
    one, two, same = trees.apart(*(trees.load(store.load_commit(rev).tree) for rev in ("main~1", "main")))
    assert (one.names(), two.names(), same) == (("vae/model.safetensors: a",),) * 2 + (1,)
    assert differences(one, two).tensors == differences(before, after).tensors
    assert differences(before, after).tensors[0].relative == 1.0
    assert np.isclose(differences(before, after).largest or 0, 1.0)


def test_changes_of_mappings() -> None:
    assert changes({}, {}) == {}
    assert changes({"a": None}, {"a": None}) == {}
