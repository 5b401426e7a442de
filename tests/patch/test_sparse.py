"""A sparse patch changes exactly the values under its mask, to exactly what they were tuned to."""

from __future__ import annotations

import math
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint.models import same_bits
from hypothesis import given
from hypothesis import strategies as st

from cofuse.checkpoint import CHUNK, Checkpoint, Memory, content_id
from cofuse.errors import PatchError
from cofuse.patch import Patch, Sparse, apply, make
from cofuse.patch.manifest import chunks_of
from cofuse.patch.masks import BIASES, at_random, by_magnitude, top

from .models import array, finetuned, floats

SIZES = {"b.weight": (30, 20), "a.bias": (40,), "c": (7, 3, 2), "empty": (0, 4)}
TOTAL = 30 * 20 + 40 + 7 * 3 * 2


def pair(dtype: torch.dtype = torch.float32, *, seed: int = 0, size: float = 0.01) -> tuple[Memory, Memory]:
    base = {name: tensor.to(dtype) for name, tensor in floats(seed, SIZES).items()}
    return Memory(base, where="base"), Memory(finetuned(base, seed + 50, size), where="tuned")


def slow_top(scores: dict[str, np.ndarray], k: int) -> dict[str, np.ndarray]:
    """Sorted whole: the largest first, then by name, then by place."""
    rows = [(-s, name, i) for name in sorted(scores) for i, s in enumerate(scores[name].reshape(-1).tolist())]
    chosen = {(name, i) for _, name, i in sorted(rows)[:k]}
    return {n: np.array([(n, i) in chosen for i in range(s.size)], bool).reshape(s.shape) for n, s in scores.items()}


def assert_masked(applied: Checkpoint, base: Memory, tuned: Memory, masks: dict[str, np.ndarray]) -> None:
    for name, mask in masks.items():
        new, old, got = (
            np.frombuffer(cp.read_bytes(name), np.uint8).reshape(mask.size, -1) if mask.size else np.empty(0)
            for cp in (tuned, base, applied)
        )
        assert np.array_equal(got, np.where(mask.reshape(-1, 1), new, old) if mask.size else got), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn])
@pytest.mark.parametrize("share", [0.0, 0.005, 0.1, 0.5, 1.0])
def test_it_keeps_the_k_values_that_changed_most(dtype: torch.dtype, share: float, tmp_path: Path) -> None:
    base, tuned = pair(dtype, size=0.2)
    k = round(share * TOTAL)
    working = np.float64 if dtype == torch.float64 else np.float32
    scores = {
        n: np.abs(array(tuned, n).astype(working) - array(base, n).astype(working)).astype(np.float32) for n in SIZES
    }
    masks = slow_top(scores, k)
    patch = make(base, tuned, tmp_path / "x.patch", Sparse(share))
    assert sum(mask.sum() for mask in masks.values()) == k
    assert_masked(apply(base, patch), base, tuned, masks)
    assert content_id(apply(base, patch)) == patch.result
    assert sum(values for _, values, _, _ in patch.sizes()) <= k
    assert patch.exact == (patch.result == content_id(tuned))


def test_every_value_that_it_keeps_is_in_the_file_once(tmp_path: Path) -> None:
    base, tuned = pair()
    patch = make(base, tuned, tmp_path / "x.patch", Sparse(0.05))
    assert sum(values for _, values, _, _ in patch.sizes()) == round(0.05 * TOTAL)


@given(st.integers(0, 50), st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(1, 4), st.booleans())
def test_ties_go_by_name_and_place(k: int, scores: list[int], parts: int, each: bool) -> None:
    """Few scores, many ties: exactly k, and the first of those that tie."""
    cut = -(-len(scores) // parts)
    held = {f"t{i}": np.array(scores[i * cut : (i + 1) * cut], np.float32) for i in range(parts)}
    held = {name: values for name, values in held.items() if values.size}
    base = Memory({n: torch.zeros(len(v)) for n, v in held.items()})
    tuned = Memory({n: torch.from_numpy(v) for n, v in held.items()})
    specs = {name: base.spec(name) for name in held}
    share = min(1.0, k / len(scores))
    mask = top(by_magnitude(base, tuned), specs, share, per_tensor=each)
    groups = [[name] for name in held] if each else [list(held)]
    for group in groups:
        some = {name: held[name] for name in group}
        wanted = slow_top(some, round(share * sum(v.size for v in some.values())))
        for name in group:
            assert np.array_equal(mask.keep(name, 0), wanted[name])


def test_a_mask_of_several_chunks_does_not_depend_on_threads() -> None:
    size = CHUNK // 4 + 7
    base = Memory({"a": torch.zeros(size), "b": torch.zeros(2 * size)})
    generator = torch.Generator().manual_seed(0)
    tuned = Memory({n: torch.randint(0, 50, (base.spec(n).numel,), generator=generator).float() for n in ("a", "b")})
    specs = {name: base.spec(name) for name in ("b", "a")}
    kept = {}
    for threads in (1, 5):
        mask = top(by_magnitude(base, tuned), specs, 0.301, threads=threads)
        kept[threads] = {n: np.concatenate([mask.keep(n, i) for i in chunks_of(specs[n])]) for n in specs}
    for name in specs:
        assert np.array_equal(kept[1][name], kept[5][name])
    k = round(0.301 * 3 * size)
    assert sum(int(mask.sum()) for mask in kept[1].values()) == k
    scores = np.concatenate([array(tuned, "a"), array(tuned, "b")])
    flat = np.concatenate([kept[1]["a"], kept[1]["b"]])
    wanted = np.zeros(len(scores), bool)
    wanted[np.argsort(-scores, kind="stable")[:k]] = True
    assert np.array_equal(flat, wanted)


def test_fish_takes_the_largest_fisher(tmp_path: Path) -> None:
    base, tuned = pair()
    fisher = {name: torch.rand(SIZES[name]).square() for name in ("b.weight", "c")}
    patch = make(base, tuned, tmp_path / "x.patch", Sparse(0.02, by="fisher", fisher=Memory(fisher)))
    masks = slow_top({n: fisher[n].numpy() if n in fisher else np.zeros(SIZES[n]) for n in SIZES}, round(0.02 * TOTAL))
    assert_masked(apply(base, patch), base, tuned, masks)


def test_masked_training_is_exact(tmp_path: Path) -> None:
    """What trained under a mask comes back bit for bit from a patch under the same mask, or by magnitude."""
    base, tuned = pair(torch.bfloat16)
    specs = {name: base.spec(name) for name in SIZES}
    mask = top(at_random(base, 3), specs, 0.05)
    kept = {n: torch.from_numpy(mask.keep(n, 0)).reshape(SIZES[n]) for n in SIZES if n != "empty"}
    trained = Memory(
        {n: torch.where(kept[n], tuned.read(n), base.read(n)) if n in kept else tuned.read(n) for n in SIZES}
    )
    for way in (Sparse(0.05, by="random", seed=3), Sparse(0.05)):
        patch = make(base, trained, tmp_path / "x.patch", way)
        assert patch.exact
        assert content_id(apply(base, patch)) == content_id(trained)


def test_random_masks_are_keyed_by_seed_and_place() -> None:
    base, _ = pair()
    specs = {name: base.spec(name) for name in SIZES}
    one, again, two = (top(at_random(base, seed), specs, 0.3) for seed in (1, 1, 2))
    assert all(np.array_equal(one.keep(n, 0), again.keep(n, 0)) for n in specs if specs[n].numel)
    assert any(not np.array_equal(one.keep(n, 0), two.keep(n, 0)) for n in specs if specs[n].numel)
    assert sum(int(one.keep(n, 0).sum()) for n in specs if specs[n].numel) == round(0.3 * TOTAL)


@pytest.mark.parametrize(
    ("way", "globs"), [(Sparse(by="bias"), BIASES), (Sparse(by="names", globs=("b.*",)), ("b.*",))]
)
def test_masks_by_name_take_whole_tensors(way: Sparse, globs: tuple[str, ...], tmp_path: Path) -> None:
    base, tuned = pair()
    patch = make(base, tuned, tmp_path / "x.patch", way)
    for name in SIZES:
        kept = any(fnmatchcase(name, glob) for glob in globs)
        assert same_bits(apply(base, patch).read(name), (tuned if kept else base).read(name)), name
    assert [n for n, v, _, _ in patch.sizes() if v] == [
        n for n in sorted(SIZES) if any(fnmatchcase(n, g) for g in globs)
    ]


def test_what_it_leaves_out_is_what_it_says(tmp_path: Path) -> None:
    base, tuned = pair()
    patch = make(base, tuned, tmp_path / "x.patch", Sparse(0.1))
    applied = apply(base, patch)
    for name, change in patch.manifest.tensors.items():
        left = array(tuned, name) - array(applied, name)
        norm = np.linalg.norm(array(tuned, name) - array(base, name))
        for said, true in ((change.left, np.linalg.norm(left)), (change.most, np.abs(left).max()), (change.norm, norm)):
            assert said is not None
            assert true <= said <= true * 1.001
    assert set(patch.manifest.tensors) == {n for n in SIZES if n != "empty"}  # also those of which nothing is kept


def test_the_rest_is_kept_exactly(tmp_path: Path) -> None:
    base, tuned = (dict(floats(0, {"w": (9, 9)})) for _ in range(2))
    base["n"], tuned["n"] = torch.arange(5), torch.arange(5) + 1
    base["gone"], base["other"], tuned["other"] = torch.ones(2), torch.ones(2), torch.ones(3)
    tuned["new"], tuned["w"] = torch.ones(4), tuned["w"] + 1
    before, after = Memory(base), Memory(tuned, files={"config.json": b"{}"})
    applied = apply(before, make(before, after, tmp_path / "x.patch", Sparse(0.0)))
    assert set(applied.names()) == {"w", "n", "other", "new"}
    assert same_bits(applied.read("w"), base["w"])
    for name in ("n", "other", "new"):
        assert same_bits(applied.read(name), tuned[name])
    assert applied.files["config.json"] == b"{}"


def test_values_alone_can_be_tried_on_another_base(tmp_path: Path) -> None:
    base, tuned = pair()
    other, _ = pair(seed=7)
    patch = make(base, tuned, tmp_path / "x.patch", Sparse(0.1), values=True)
    applied = apply(other, patch, anywhere=True)
    for name in SIZES:
        where = array(apply(base, patch), name) != array(base, name)
        assert np.array_equal(array(applied, name), np.where(where, array(tuned, name), array(other, name)))
    bits = make(base, tuned, tmp_path / "y.patch", Sparse(0.1))
    with pytest.raises(PatchError, match="differences of bits"):
        apply(other, bits, anywhere=True)
    with pytest.raises(PatchError, match="does not fit"):
        apply(Memory({**{n: other.read(n) for n in SIZES}, "c": torch.ones(2)}), patch, anywhere=True)


def test_places_are_near_their_entropy(tmp_path: Path) -> None:
    """A random mask of 0.5 %: H(p)/p = 9.08 bits a place."""
    base = {"w": torch.zeros(CHUNK // 4)}
    way = Sparse(0.005, by="random", seed=0)
    patch = make(Memory(base), Memory({"w": torch.ones(CHUNK // 4)}), tmp_path / "x.patch", way)
    ((_, values, places, _),) = patch.sizes()
    entropy = -math.log2(0.005) - 0.995 / 0.005 * math.log2(0.995)
    assert values == round(0.005 * (CHUNK // 4))
    assert 8 * places / values < 1.01 * entropy


def test_what_is_no_mask_is_refused(tmp_path: Path) -> None:
    base, tuned = pair()
    nan = Memory({**{n: tuned.read(n) for n in SIZES}, "c": torch.full(SIZES["c"], math.nan)})
    negative = Memory({"c": -torch.ones(SIZES["c"])})
    for after, way, match in (
        (tuned, Sparse(1.5), "share"),
        (tuned, Sparse(by="magnitud"), "no such mask"),
        (tuned, Sparse(by="fisher"), "needs one"),
        (tuned, Sparse(by="fisher", fisher=Memory({"x": torch.ones(1)})), "no tensor of this model"),
        (tuned, Sparse(by="fisher", fisher=Memory({"c": torch.ones(1)})), "does not fit"),
        (tuned, Sparse(by="fisher", fisher=negative), "not negative"),
        (nan, Sparse(0.1), "not finite"),
        (nan, Sparse(by="bias"), "not finite"),
    ):
        with pytest.raises(PatchError, match=match):
            make(base, after, tmp_path / "x.patch", way)
    assert list(tmp_path.iterdir()) == []
    assert Patch.load(make(base, nan, tmp_path / "x.patch").path).exact  # an exact one holds it


def test_words_that_are_many_or_cannot_be_printed(tmp_path: Path) -> None:
    patch = make(*pair(), tmp_path / "x.patch", Sparse(by="names", globs=("\x1b[2J", *(f"b.{i}*" for i in range(999)))))
    assert patch.manifest.made.isprintable()


def test_a_file_that_is_too_large_for_a_patch_leaves_nothing(tmp_path: Path) -> None:
    base, tuned = pair()
    large = Memory({name: tuned.read(name) for name in SIZES}, files={"vocab.txt": bytes((64 << 20) + 1)})
    with pytest.raises(PatchError, match="too large"):
        make(base, large, tmp_path / "x.patch")
    assert list(tmp_path.iterdir()) == []
