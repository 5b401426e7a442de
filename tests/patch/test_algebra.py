"""Patches compose and invert: A -> B and B -> C give A -> C, and a patch and its inverse give the base back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cofuse.checkpoint import Checkpoint, Memory, content_id
from cofuse.errors import PatchError
from cofuse.patch import LowRank, Patch, Sparse, Way, apply, compose, invert, make
from cofuse.patch.edits import ADD, PUT, XOR, Edit, composed, inverse

from .models import Folder, array, finetuned, floats, nudged, pairs
from .test_exact import assert_equal

SIZES = {"a.weight": (24, 20), "b": (31,)}


def three(size: float = 0.1) -> tuple[Memory, Memory, Memory]:
    first = floats(0, SIZES)
    second = finetuned(first, 1, size)
    return Memory(first), Memory(second), Memory(finetuned(second, 2, size))


@st.composite
def edits(draw: st.DrawFn, size: int, what: int) -> Edit:
    values = st.integers(0, 65535)
    if draw(st.booleans()):
        return Edit(what, None, np.array(draw(st.lists(values, min_size=size, max_size=size)), np.uint16))
    chosen = sorted(draw(st.sets(st.integers(0, size - 1), min_size=1)))
    held = draw(st.lists(values, min_size=len(chosen), max_size=len(chosen)))
    return Edit(what, np.array(chosen), np.array(held, np.uint16))


@given(st.sampled_from([PUT, ADD, XOR]), st.sampled_from([PUT, ADD, XOR]), st.data())
def test_two_edits_in_turn_are_one(first: int, second: int, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 8))
    one, two = data.draw(edits(size, first)), data.draw(edits(size, second))
    old = np.array(data.draw(st.lists(st.integers(0, 65535), min_size=size, max_size=size)), np.uint16)
    made = composed(one, two, size, "BF16")
    wanted = two.play(one.play(old, "BF16"), "BF16")
    if made is None:
        assert first != second  # what they make of a value depends on it
    else:
        got = made.play(old, "BF16") if len(made.values) else old
        assert np.array_equal(got, wanted)
    back = inverse(one)
    assert (back is None) == (first == PUT)
    if back is not None:
        assert np.array_equal(back.play(one.play(old, "BF16"), "BF16"), old)


@given(pairs(), st.integers(0, 9))
def test_exact_patches_compose(pair: tuple[Memory, Memory], seed: int) -> None:
    base, middle = pair
    last = Memory(
        {n: nudged(middle.read(n), seed, 0.3) for n in middle.names() if seed % 3 or n != "new"},
        files={"config.json": b"last"},
    )
    with Folder() as folder:
        first, second = make(base, middle, folder / "1.patch"), make(middle, last, folder / "2.patch")
        whole = compose(first, second, folder / "3.patch", base=base)
        assert whole.exact
        assert_equal(apply(base, whole), last)
        try:
            alone = compose(first, second, folder / "4.patch")
        except PatchError as error:
            assert "the base is needed" in error.what  # noqa: PT017 - either is right, as the edits fall out
        else:
            assert_equal(apply(base, alone), last)


@given(pairs())
def test_exact_patches_invert(pair: tuple[Memory, Memory]) -> None:
    base, tuned = pair
    with Folder() as folder:
        patch = make(base, tuned, folder / "1.patch")
        back = invert(patch, folder / "2.patch", base=base)
        assert back.exact
        assert_equal(apply(tuned, back), base)
        try:
            alone = invert(patch, folder / "3.patch")
        except PatchError as error:
            assert "the base is needed" in error.what  # noqa: PT017
        else:
            assert_equal(apply(tuned, alone), base)


def test_values_compose_without_the_base(tmp_path: Path) -> None:
    base, _, _ = three()
    one = make(base, three()[1], tmp_path / "1.patch", Sparse(0.1), values=True)
    middle = apply(base, one)
    last = Memory(finetuned({n: middle.read(n) for n in SIZES}, 3))
    two = make(middle, last, tmp_path / "2.patch", Sparse(0.2), values=True)
    whole = compose(one, two, tmp_path / "3.patch")
    assert content_id(apply(base, whole)) == whole.result == two.result
    assert {n: (c.left, c.most) for n, c in whole.manifest.tensors.items()} == {
        n: (c.left, c.most) for n, c in two.manifest.tensors.items()
    }
    with pytest.raises(PatchError, match="not what they were"):
        invert(one, tmp_path / "4.patch")


def test_differences_compose_and_invert_without_the_base(tmp_path: Path) -> None:
    base, middle, last = three(1e-4)
    one, two = make(base, middle, tmp_path / "1.patch"), make(middle, last, tmp_path / "2.patch")
    assert {what for patch in (one, two) for n in SIZES for what in patch.whats(n)} == {ADD}
    whole = compose(one, two, tmp_path / "3.patch")
    assert content_id(apply(base, whole)) == content_id(last)
    assert content_id(apply(last, invert(whole, tmp_path / "4.patch"))) == content_id(base)
    nothing = compose(one, invert(one, tmp_path / "5.patch"), tmp_path / "6.patch")
    assert not nothing.manifest.tensors
    assert nothing.base == nothing.result


def bound(patch: Patch, result: Checkpoint, tuned: Checkpoint) -> None:
    """What is left is at most what the patch says."""
    for name in result.names():
        left = array(tuned, name) - array(result, name)
        said = patch.manifest.tensors.get(name)
        assert np.linalg.norm(left) <= (said.left if said else 0)
        assert np.abs(left).max() <= (said.most if said else 0)


def test_low_ranks_add_up(tmp_path: Path) -> None:
    base, tuned, _ = three()
    one = make(base, tuned, tmp_path / "1.patch", LowRank(rank=2))
    middle = apply(base, one)
    last = Memory(finetuned({n: middle.read(n) for n in SIZES}, 5, 0.1))
    two = make(middle, last, tmp_path / "2.patch", LowRank(rank=3))
    with pytest.raises(PatchError, match="the base is needed"):
        compose(one, two, tmp_path / "3.patch")
    whole = compose(one, two, tmp_path / "3.patch", base=base)
    assert whole.manifest.tensors["a.weight"].rank == 5
    assert whole.manifest.tuned == content_id(last)
    result = apply(base, whole)
    assert content_id(result) == whole.result
    torch.testing.assert_close(result.read("a.weight"), apply(middle, two).read("a.weight"))
    bound(whole, result, last)


def test_a_low_rank_is_taken_away_again(tmp_path: Path) -> None:
    base, tuned, _ = three()
    patch = make(base, tuned, tmp_path / "1.patch", LowRank(rank=2))
    with pytest.raises(PatchError, match="the base is needed"):
        invert(patch, tmp_path / "2.patch")
    back = invert(patch, tmp_path / "2.patch", base=base)
    assert back.manifest.tensors["a.weight"].rank == 2
    again = apply(apply(base, patch), back)
    torch.testing.assert_close(again.read("a.weight"), base.read("a.weight"))
    bound(back, again, base)


def test_a_sparse_patch_after_one_of_low_rank(tmp_path: Path) -> None:
    base, tuned, _ = three()
    one = make(base, tuned, tmp_path / "1.patch", LowRank(rank=2))
    middle = apply(base, one)
    two = make(middle, tuned, tmp_path / "2.patch", Sparse(0.1))
    whole = compose(one, two, tmp_path / "3.patch", base=base)
    assert content_id(apply(base, whole)) == whole.result == two.result
    bound(whole, apply(base, whole), tuned)


def test_what_does_not_follow_is_refused(tmp_path: Path) -> None:
    base, tuned, last = three()
    one = make(base, tuned, tmp_path / "1.patch")
    other = make(base, last, tmp_path / "2.patch")
    for first, second in ((one, other), (other, one), (one, one)):
        with pytest.raises(PatchError, match="does not start where the first ends") as caught:
            compose(first, second, tmp_path / "3.patch")
        assert first.result in str(caught.value.expected)
    with pytest.raises(PatchError, match="another base"):
        compose(one, make(tuned, last, tmp_path / "4.patch"), tmp_path / "3.patch", base=last)
    assert Way().says() == "exact"
    assert not (tmp_path / "3.patch").exists()
