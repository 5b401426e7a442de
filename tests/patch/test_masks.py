"""Masks: their spelling, the top k of a model's own magnitude, and places as the mask's own numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cofuse.checkpoint import Memory
from cofuse.errors import PatchError
from cofuse.patch.choice import WORDS, choice, share_of
from cofuse.patch.manifest import CHUNK
from cofuse.patch.masks import Named, at_random, by_size, places, top


def model(dtype: torch.dtype = torch.float32) -> Memory:
    generator = torch.Generator().manual_seed(0)
    shapes = {"a.weight": (40, 25), "a.bias": (40,), "b.weight": (7, 3, 5), "empty": (0, 4)}
    return Memory({name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()})


@settings(max_examples=30, deadline=None)
@given(share=st.floats(0.0001, 1), per_tensor=st.booleans(), half=st.booleans())
def test_magnitude_takes_the_largest_by_a_sort(share: float, per_tensor: bool, half: bool) -> None:
    held = model(torch.bfloat16 if half else torch.float32)
    specs = {name: held.spec(name) for name in held.names()}
    mask = top(by_size(held), specs, share, per_tensor=per_tensor)
    # The twin: all values in one list, in the order that breaks ties, sorted.
    groups = [[name] for name in sorted(specs)] if per_tensor else [sorted(specs)]
    for group in groups:
        rows = [(name, i, abs(v)) for name in group for i, v in enumerate(held.read(name).float().flatten().tolist())]
        best = sorted(rows, key=lambda row: -row[2])[: round(share * len(rows))]
        for name in group:
            assert places(mask, name).tolist() == sorted(i for n, i, _ in best if n == name)


def test_places_are_those_that_the_mask_keeps_in_every_chunk() -> None:
    held = Memory({"w": torch.zeros(2 * CHUNK // 4 + 5)})
    mask = top(at_random(held, 1), {"w": held.spec("w")}, 0.001)
    kept = np.concatenate([mask.keep("w", i) for i in range(3)])
    assert places(mask, "w").tolist() == np.flatnonzero(kept).tolist()
    assert len(places(mask, "w")) == round(0.001 * held.spec("w").numel)
    assert places(Named({"w": held.spec("w")}, ("x",)), "w").tolist() == []


@given(st.sampled_from(sorted(WORDS)), st.floats(1e-4, 100), st.integers(0, 10**6))
def test_what_a_choice_says_reads_as_itself(kind: str, percent: float, seed: int) -> None:
    tail = {"SEED": f":{seed}", "GLOB,GLOB": ":*.a,b", "": ""}.get(WORDS[kind].argument, ":some/folder")
    said = choice(f"{kind}{f':{percent:g}%' * WORDS[kind].counts}{tail}")
    assert choice(str(said)) == said
    assert said.seed == (seed if kind == "random" else None)
    assert said.globs == (("*.a", "b") if kind == "names" else ())
    if WORDS[kind].counts:
        assert said.share == pytest.approx(float(f"{percent:g}") / 100)


def test_a_share_is_told_from_what_else_may_follow() -> None:
    assert (choice("random:7").share, choice("random:7").seed) == (None, 7)
    assert (choice("random:0.07").share, choice("random:.07:3").seed) == (0.07, 3)
    assert (choice("fisher:runs/F").argument, choice("fish:1e-3:runs/F:x").argument) == ("runs/F", "runs/F:x")
    assert choice("magnitude").whole("1 %", per_tensor=False, where="--sparse").share == 0.01
    assert share_of(" 50 %") == 0.5


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("fsih:1%", "no such mask"),
        ("", "no such mask"),
        ("fish:0%", "not a share"),
        ("fish:101%", "not a share"),
        ("magnitude:1%:x", "not of this mask"),
        ("magnitude:1", "not of this mask"),
        ("bias:1%", "not of this mask"),
        ("random:1%:x", "has a seed"),
        ("random:-1", "has a seed"),
        ("names", "has names"),
        ("names: , ", "has names"),
    ],
)
def test_what_is_no_choice_is_refused(text: str, match: str) -> None:
    with pytest.raises(PatchError, match=match):
        choice(text)


@pytest.mark.parametrize(
    ("text", "share", "per_tensor", "match"),
    [
        ("fish:1%", "1%", False, "a share twice"),
        ("bias", "1%", False, "takes no share"),
        ("bias", None, True, "takes no share of each"),
        ("random:1", None, False, "how many values"),
    ],
)
def test_a_share_is_said_once_where_there_is_one(text: str, share: str | None, per_tensor: bool, match: str) -> None:
    with pytest.raises(PatchError, match=match):
        choice(text).whole(share, per_tensor=per_tensor, where="here")
