"""Slices: which layers of which models make the layers of the result."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cofuse.checkpoint import Memory, restacked
from cofuse.checkpoint import Slice as Layers
from cofuse.errors import FuseError
from cofuse.fuse import Fused, Recipe, fuse_recipe


def model(seed: int, layers: int = 4, stack: str = "model.layers", **more: torch.Tensor) -> Memory:
    draw = torch.Generator().manual_seed(seed)
    names = [
        "model.embed.weight",
        *(f"{stack}.{i}.mlp.weight" for i in range(layers)),
        "model.norm.weight",
        "lm_head.weight",
    ]
    config = f'{{"num_hidden_layers": {layers}, "layer_types": {[f"k{seed}.{i}" for i in range(layers)]}}}'
    return Memory(
        {**{n: torch.randn(2, 3, generator=draw) for n in names}, **more},
        files={"config.json": config.replace("'", '"').encode()},
        where=f"model {seed}",
    )


MODELS = {"a": model(1), "b": model(2), "c": model(3, 6)}


def stacked(slices: list[Any], method: str = "passthrough", models: dict[str, Any] = MODELS, **more: Any) -> Fused:
    return fuse_recipe(Recipe.model_validate({"merge_method": method, "slices": slices, **more}), models)


def one(model: str, start: int, stop: int, **parameters: Any) -> dict[str, Any]:
    return {"model": model, "layer_range": [start, stop], "parameters": parameters}


@pytest.mark.parametrize(
    "parts",
    [
        [("a", 0, 4)],
        [("a", 0, 3), ("b", 2, 4)],
        [("a", 0, 3), ("a", 1, 4)],
        [("c", 0, 6), ("a", 0, 1)],
        [("b", 1, 2), ("b", 1, 2), ("b", 1, 2)],
    ],
)
def test_a_stack_is_what_restacking_gives(parts: list[tuple[str, int, int]]) -> None:
    got = stacked([{"sources": [one(*part)]} for part in parts])
    expected = restacked([Layers(MODELS[name], start, stop) for name, start, stop in parts])
    assert set(got.names()) == set(expected.names())
    assert all(torch.equal(got.read(n), expected.read(n)) for n in expected.names())
    assert got.config == expected.config


def test_names_run_from_the_first_tensor_to_the_last() -> None:
    got = stacked([{"sources": [one("a", 2, 4)]}, {"sources": [one("b", 0, 1)]}])
    assert got.names() == (
        "model.embed.weight",
        *(f"model.layers.{i}.mlp.weight" for i in range(3)),
        "model.norm.weight",
        "lm_head.weight",
    )
    assert [got.plan.tensors[n].inputs[0].name for n in got.names()[1:4]] == [
        f"model.layers.{i}.mlp.weight" for i in (2, 3, 0)
    ]


def test_sources_of_one_slice_are_fused_layer_by_layer() -> None:
    got = stacked([{"sources": [one("a", 0, 2, weight=1), one("c", 3, 5, weight=3)]}], "linear")
    for i in range(2):
        a = MODELS["a"].read(f"model.layers.{i}.mlp.weight")
        c = MODELS["c"].read(f"model.layers.{3 + i}.mlp.weight")
        torch.testing.assert_close(got.read(f"model.layers.{i}.mlp.weight"), (a + 3 * c) / 4)
    # What stands before and behind the layers is fused too, by the sources of the first and of the last slice.
    both = (MODELS["a"].read("model.norm.weight") + 3 * MODELS["c"].read("model.norm.weight")) / 4
    torch.testing.assert_close(got.read("model.norm.weight"), both)


def test_one_model_may_be_fused_with_its_own_other_layers() -> None:
    got = stacked([{"sources": [one("a", 0, 2), one("a", 2, 4)]}], "linear")
    expected = (MODELS["a"].read("model.layers.0.mlp.weight") + MODELS["a"].read("model.layers.2.mlp.weight")) / 2
    torch.testing.assert_close(got.read("model.layers.0.mlp.weight"), expected)


def test_a_slice_may_have_a_base_of_its_own() -> None:
    slices = [
        {"sources": [one("a", 0, 2), one("b", 0, 2)], "base_model": "a"},
        {"sources": [one("b", 2, 4), one("a", 2, 4)], "base_model": "b"},
    ]
    got = stacked(slices, "task_arithmetic", parameters={"weight": 0.5})
    for i, (base, tuned) in enumerate([("a", "b")] * 2 + [("b", "a")] * 2):
        first, second = (MODELS[m].read(f"model.layers.{i}.mlp.weight") for m in (base, tuned))
        torch.testing.assert_close(got.read(f"model.layers.{i}.mlp.weight"), first + 0.5 * (second - first))
    assert got.plan.inputs[got.plan.leader] == "a"


def test_t_runs_over_each_slice_by_itself() -> None:
    slices = [{"sources": [one("a", 0, 3)]}, {"sources": [one("b", 0, 1)]}, {"sources": [one("c", 2, 4)]}]
    got = stacked(slices, parameters={"scale": [0, 1]})
    scales = [got.plan.tensors[f"model.layers.{i}.mlp.weight"].parameters["scale"] for i in range(6)]
    assert scales == [(0.0,), (0.5,), (1.0,), (1.0,), (0.0,), (1.0,)]
    assert got.plan.tensors["model.norm.weight"].parameters["scale"] == (0.0,)


def test_the_source_goes_before_the_slice_and_that_before_the_recipe() -> None:
    slices = [
        {"sources": [one("a", 0, 1, weight=1)], "parameters": {"weight": 2}},
        {"sources": [one("a", 1, 2)], "parameters": {"weight": 2}},
        {"sources": [one("a", 2, 3)]},
        {"sources": [one("a", 3, 4, weight=[{"filter": "attn", "value": 1}])]},  # no rule fits: the next one is asked
    ]
    got = stacked(slices, "linear", parameters={"weight": 3, "normalize": False})
    weights = [got.plan.tensors[f"model.layers.{i}.mlp.weight"].parameters["weight"] for i in range(4)]
    assert weights == [(1.0,), (2.0,), (3.0,), (3.0,)]


def test_filters_see_a_models_own_names_and_shared_ones_the_results() -> None:
    # As in mergekit: a parameter of each model looks at the layer's number there, one of all at its number here.
    rule = [{"filter": "layers.3.", "value": 5}, 1]
    slices = [{"sources": [one("a", 0, 2)]}, {"sources": [one("b", 1, 4)]}]
    got = stacked(slices, "linear", parameters={"weight": rule, "normalize": [{"filter": "layers.3.", "value": False}]})
    found = [got.plan.tensors[f"model.layers.{i}.mlp.weight"].parameters for i in range(5)]
    assert [p["weight"] for p in found] == [(1.0,), (1.0,), (1.0,), (1.0,), (5.0,)]
    assert [p["normalize"] for p in found] == [True, True, True, False, True]


def test_a_layer_range_outside_the_model_is_told() -> None:
    with pytest.raises(FuseError) as caught:
        stacked([{"sources": [one("c", 0, 2)]}, {"sources": [one("a", 3, 5)]}])
    assert (caught.value.what, caught.value.where) == ("the model has no such layer", "model 1")
    assert (caught.value.got, caught.value.expected) == ("layers 3 to 4", "0 to 3")
    assert caught.value.hint == "layer_range: [3, 4]"


@pytest.mark.parametrize(
    "other", [Memory({"x": torch.ones(1)}), model(5, stack="encoder.block", **{"decoder.block.0.x": torch.ones(1)})]
)
def test_models_without_one_stack_are_refused(other: Memory) -> None:
    with pytest.raises(FuseError, match="one stack of layers"):
        stacked([{"sources": [one("a", 0, 1)]}], models={"a": other})


def test_the_base_gives_the_files() -> None:
    got = stacked([{"sources": [one("b", 0, 2)]}], base_model="a")
    assert got.config["layer_types"] == ["k2.0", "k2.1"]
    assert got.plan.inputs[got.plan.leader] == "a"
