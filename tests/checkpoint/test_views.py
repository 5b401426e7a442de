"""Views: other names, other layers, another's tensors on top; nothing is read to make them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from transformers import AutoModel, BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

from cofuse.checkpoint import (
    Checkpoint,
    Memory,
    Slice,
    Source,
    View,
    content_id,
    open_local,
    overlaid,
    renamed,
    restacked,
    save,
)
from cofuse.errors import CheckpointError, HeaderError

from .models import assert_same, checkpoints, same_bits

T = {i: torch.full((2,), float(i)) for i in range(10)}


def values(checkpoint: Checkpoint) -> dict[str, float]:
    return {name: checkpoint.read(name)[0].item() for name in (*checkpoint.names(), *checkpoint.aliases)}


class Unread(Memory):
    """Fails when a tensor is read."""

    def read_bytes(self, name: str, start: int = 0, stop: int | None = None) -> bytearray:
        raise AssertionError(f"{name} was read")


def test_making_a_view_reads_nothing() -> None:
    base = Unread({"layers.0.w": T[0], "layers.1.w": T[1], "norm.w": T[2]}, files={"config.json": b"{}"})
    renamed(base, lambda n: f"x.{n}")
    overlaid(base, base)
    restacked([Slice(base, 0, 2), Slice(base, 0, 1)])


@given(checkpoint=checkpoints())
def test_renaming_there_and_back_changes_nothing(checkpoint: Memory) -> None:
    there = renamed(checkpoint, "x.y.".__add__)
    assert all(name.startswith("x.y.") for name in (*there.names(), *there.aliases))
    back = renamed(there, lambda name: name.removeprefix("x.y."))
    assert back.names() == checkpoint.names()
    assert dict(back.aliases) == dict(checkpoint.aliases)
    assert dict(back.files) == dict(checkpoint.files)
    assert dict(back.metadata) == dict(checkpoint.metadata)
    assert content_id(back) == content_id(checkpoint)
    for name in checkpoint.names():
        assert list(back.blocks(name, 16)) == list(checkpoint.blocks(name, 16))
        assert same_bits(there.read(f"x.y.{name}", None), checkpoint.read(name))


def test_two_tensors_cannot_get_one_name() -> None:
    with pytest.raises(CheckpointError, match="two tensors under one name"):
        renamed(Memory({"a": T[0], "b": T[1]}), lambda _: "x")
    tied = Memory({"a": T[0], "b": T[1], "c": T[1]})
    with pytest.raises(CheckpointError, match="two tensors under one name"):
        renamed(tied, {"a": "a", "b": "b", "c": "a"}.get)
    assert values(renamed(tied, {"b": "x", "c": "x"}.get)) == {"x": 1}


def test_a_tied_tensor_outlives_the_name_it_was_kept_under() -> None:
    tied = Memory({"emb": T[3], "head": T[3], "again": T[3]})
    assert dict(tied.aliases) == {"head": "emb", "again": "emb"}
    view = renamed(tied, lambda name: None if name == "emb" else name)
    assert values(view) == {"head": 3, "again": 3}
    assert dict(view.aliases) == {"again": "head"}
    assert values(renamed(tied, lambda name: name if name == "emb" else None)) == {"emb": 3}


def test_a_new_name_must_be_allowed() -> None:
    with pytest.raises(HeaderError, match="not allowed"):
        renamed(Memory({"a": T[0]}), lambda _: "../a")


def test_a_view_names_what_it_lacks() -> None:
    view = View({"a": Source(Memory({"x": T[1]}), "x")}, aliases={"b": "a"}, where="mine")
    assert values(view) == {"a": 1, "b": 1}
    assert "a" in view
    assert "b" in view
    assert "x" not in view
    with pytest.raises(CheckpointError, match="no such tensor") as caught:
        view.read("x")
    assert caught.value.where == "mine"


TIED, OTHER = T[5], T[6]
OVERLAYS: dict[str, tuple[Mapping[str, Any], Mapping[str, Any], Mapping[str, float], Mapping[str, str]]] = {
    # base, top, values, aliases
    "some": ({"a": T[0], "b": T[1]}, {"b": T[2]}, {"a": 0, "b": 2}, {}),
    "more": ({"a": T[0]}, {"b": T[2]}, {"a": 0, "b": 2}, {}),
    "nothing": ({"a": T[0]}, {}, {"a": 0}, {}),
    "base ties, top neither": ({"e": TIED, "h": TIED, "a": T[0]}, {"a": T[1]}, {"e": 5, "h": 5, "a": 1}, {"h": "e"}),
    "base ties, top the kept": ({"e": TIED, "h": TIED}, {"e": OTHER}, {"e": 6, "h": 6}, {"h": "e"}),
    "base ties, top the alias": ({"e": TIED, "h": TIED}, {"h": OTHER}, {"e": 5, "h": 6}, {}),
    "base ties, top has both": ({"e": TIED, "h": TIED}, {"e": T[1], "h": T[2]}, {"e": 1, "h": 2}, {}),
    "both tie alike": ({"e": TIED, "h": TIED}, {"e": OTHER, "h": OTHER}, {"e": 6, "h": 6}, {"h": "e"}),
    "both tie, kept the other way": ({"e": TIED, "h": TIED}, {"h": OTHER, "e": OTHER}, {"e": 6, "h": 6}, {"h": "e"}),
    "top ties what the base has apart": ({"e": T[1], "h": T[2]}, {"e": OTHER, "h": OTHER}, {"e": 6, "h": 6}, {}),
    "top ties what the base lacks": ({"a": T[1]}, {"e": OTHER, "h": OTHER}, {"a": 1, "e": 6, "h": 6}, {"h": "e"}),
    "top ties half to the base's": ({"e": T[1]}, {"x": OTHER, "e": OTHER}, {"e": 6, "x": 6}, {}),
}


@pytest.mark.parametrize("case", OVERLAYS)
def test_an_overlay_has_the_tops_values_where_it_has_any(case: str, tmp_path: Path) -> None:
    base, top, expected, aliases = OVERLAYS[case]
    view = overlaid(Memory(base, files={"config.json": b"{}"}), Memory(top))
    assert values(view) == expected
    assert dict(view.aliases) == aliases
    assert list(view.files) == ["config.json"]
    save(view, tmp_path / "m", max_shard_bytes=8)
    assert values(open_local(tmp_path / "m")) == expected


def test_an_old_tie_in_the_metadata_does_not_come_back(tmp_path: Path) -> None:
    save(Memory({"e": TIED, "h": TIED, "a": T[0]}), tmp_path / "base")
    view = overlaid(open_local(tmp_path / "base"), Memory({"h": OTHER}))
    save(view, tmp_path / "m", max_shard_bytes=8)
    assert values(open_local(tmp_path / "m")) == {"e": 5, "h": 6, "a": 0}


def stack(start: int, layers: int = 3, **config: Any) -> Memory:
    held = {"embeddings.norm.weight": T[start], "model.embed.weight": T[start]}
    held |= {
        f"model.layers.{i}.{part}.weight": torch.full((2,), start + 0.1 * (i + 1))
        for i in range(layers)
        for part in "ab"
    }
    held |= {"model.norm.weight": torch.full((2,), start + 0.9), "lm_head.weight": torch.full((2,), start + 0.95)}
    files = {"config.json": json.dumps({"num_hidden_layers": layers, "other": 1, **config}).encode(), "vocab.txt": b"x"}
    return Memory(held, files=files, where=f"model {start}")


def test_restacking_takes_layers_in_order_and_rewrites_the_config() -> None:
    a, b = stack(1), stack(5)
    view = restacked([Slice(a, 0, 2), Slice(b, 1, 3), Slice(a, 1, 2)])
    got = {name: round(value, 2) for name, value in values(view).items()}
    layers = [1.1, 1.2, 5.2, 5.3, 1.2]
    assert got == {
        "embeddings.norm.weight": 1,
        "model.embed.weight": 1,
        "model.norm.weight": 1.9,
        "lm_head.weight": 1.95,
        **{f"model.layers.{i}.{part}.weight": value for i, value in enumerate(layers) for part in "ab"},
    }
    assert view.config == {"num_hidden_layers": 5, "other": 1}
    assert view.files["vocab.txt"] == b"x"
    assert a.config["num_hidden_layers"] == 3


def test_what_stands_behind_the_stack_comes_from_the_last_slice() -> None:
    got = values(restacked([Slice(stack(1), 0, 2), Slice(stack(5), 2, 3)]))
    assert (round(got["model.norm.weight"], 2), round(got["lm_head.weight"], 2)) == (5.9, 5.95)
    assert (got["embeddings.norm.weight"], got["model.embed.weight"]) == (1, 1)


def test_all_layers_of_one_model_are_that_model() -> None:
    model = stack(2)
    assert content_id(restacked([Slice(model, 0, 3)])) == content_id(model)
    assert content_id(restacked([Slice(model, 0, 1), Slice(model, 1, 3)])) == content_id(model)


def test_what_the_config_says_layer_by_layer_follows_the_layers() -> None:
    a = stack(1, layer_types=["full", "sliding", "sliding"])
    b = stack(5, layer_types=["x", "y", "z"])
    view = restacked([Slice(a, 0, 2), Slice(b, 2, 3), Slice(a, 0, 1)])
    assert view.config["layer_types"] == ["full", "sliding", "z", "full"]


@pytest.mark.parametrize(
    ("slices", "says"),
    [
        (lambda m: [], "no slices"),
        (lambda m: [Slice(m, 0, 4)], "no such layer"),
        (lambda m: [Slice(m, -1, 2)], "no such layer"),
        (lambda m: [Slice(m, 2, 2)], "no layers"),
        (lambda m: [Slice(Memory({"w": T[0]}), 0, 1)], "no such layer"),
    ],
)
def test_layers_that_are_not_there_are_refused(slices: Callable[[Memory], list[Slice]], says: str) -> None:
    with pytest.raises(CheckpointError, match=says):
        restacked(slices(stack(1)))


@pytest.mark.parametrize("tied", [True, False])
def test_transformers_runs_a_restacked_model(tied: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=20, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2,
        tie_word_embeddings=tied, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    base = Memory(model.state_dict(), files={"config.json": config.to_json_string().encode()})
    save(restacked([Slice(base, 0, 2), Slice(base, 1, 3)]), tmp_path / "m")
    loaded, info = LlamaForCausalLM.from_pretrained(tmp_path / "m", output_loading_info=True)
    assert loaded.config.num_hidden_layers == 4
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    order = [0, 1, 1, 2]
    for i, layer in enumerate(loaded.model.layers):
        assert_same(Memory(layer.state_dict()), model.model.layers[order[i]].state_dict())
    assert loaded(torch.tensor([[1, 2, 3]])).logits.isfinite().all()


def test_transformers_runs_a_restacked_encoder(tmp_path: Path) -> None:
    config = BertConfig(vocab_size=20, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)
    base = Memory(BertModel(config).state_dict(), files={"config.json": config.to_json_string().encode()})
    save(restacked([Slice(base, 0, 2), Slice(base, 0, 1)]), tmp_path / "m")
    assert len(AutoModel.from_pretrained(tmp_path / "m").encoder.layer) == 3
