"""Models that share a part fuse that part; the rest is kept."""

from __future__ import annotations

import pytest
import torch

from cofuse.checkpoint import Memory
from cofuse.errors import CheckpointError, FuseError
from cofuse.fuse import fuse
from cofuse.fuse.partial import Prefix, part_of

TOWER = ("model.embed.weight", "model.layers.0.w", "lm_head.weight")


def plain(value: float) -> Memory:
    return Memory(
        {n: torch.full((2,), float(value)) for n in TOWER}, files={"config.json": b'{"plain": 1}'}, where="plain"
    )


def seeing(value: float) -> Memory:
    held = {f"language_model.{n}": torch.full((2,), float(value)) for n in TOWER}
    return Memory({**held, "vision.w": torch.full((3,), float(value))}, files={"config.json": b"{}"}, where="seeing")


def test_a_language_tower_fuses_with_a_plain_model() -> None:
    base, tuned = seeing(0), part_of(plain(4), seeing(0), [Prefix(from_="", to="language_model.")], partial=True)
    assert tuned.config == {"plain": 1}
    fused = fuse("task_arithmetic", [tuned], base=base, weights=[0.5])
    assert set(fused.names()) == set(base.names())
    for name in fused.names():
        assert fused.read(name)[0].item() == (2.0 if name.startswith("language_model") else 0.0)


def test_the_plain_model_may_lead() -> None:
    tuned = part_of(seeing(4), plain(0), [Prefix(from_="language_model.", to="")], partial=True)
    assert set(tuned.names()) == set(TOWER)
    assert all(tuned.read(n)[0].item() == 4 for n in TOWER)


def test_the_longest_prefix_counts() -> None:
    prefixes = [Prefix(from_="model.", to="a."), Prefix(from_="model.layers.", to="b.")]
    assert set(part_of(plain(1), plain(1), prefixes).names()) == {"a.embed.weight", "b.0.w", "lm_head.weight"}


def test_nothing_to_do_gives_the_model_itself() -> None:
    model = plain(1)
    assert part_of(model, seeing(0)) is model


def test_tied_names_follow() -> None:
    w = torch.ones(2)
    model = Memory({"model.embed.weight": w, "lm_head.weight": w})
    view = part_of(model, seeing(0), [Prefix(from_="", to="language_model.")], partial=True)
    assert view.read("language_model.lm_head.weight").tolist() == [1, 1]
    assert view.read("language_model.model.layers.0.w").tolist() == [0, 0]


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(FuseError, match=r"no tensor has the prefix[\s\S]*lm_head"):
        part_of(plain(1), seeing(0), [Prefix(from_="transformer.", to="x.")])
    with pytest.raises(FuseError, match="share no tensor"):
        part_of(plain(1), seeing(0), partial=True)
    with pytest.raises(CheckpointError, match="two tensors under one name"):
        part_of(Memory({"a.x": torch.ones(1), "b.x": torch.ones(1)}), plain(0), [Prefix(from_="a.", to="b.")])
