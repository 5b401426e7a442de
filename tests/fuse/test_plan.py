"""Plans: what will happen to each tensor, decided from names and shapes alone."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import torch

from cofuse.checkpoint import Checkpoint, Memory
from cofuse.errors import FuseError
from cofuse.fuse import METHODS, Fused, Method, Parameter, Plan, Recipe, Statistic, fuse, fuse_recipe, make_plan
from cofuse.fuse.outline import outline
from cofuse.fuse.slices import PlannedError


class Unread(Memory):
    """Has names and shapes, and no bytes to give."""

    def read_bytes(self, name: str, start: int = 0, stop: int | None = None) -> bytearray:
        raise AssertionError(f"{name} was read")


def model(value: float = 0.0, layers: int = 5, **more: torch.Tensor | None) -> Unread:
    names = [f"model.layers.{i}.{part}.weight" for i in range(layers) for part in ("self_attn.q", "mlp.up")]
    made = {n: torch.full((2, 3), float(value)) for n in ("model.embed_tokens.weight", *names, "model.norm.weight")}
    made |= {n.replace("__", "."): t for n, t in more.items() if t is not None}
    for n, t in more.items():
        if t is None:
            del made[n.replace("__", ".")]
    return Unread(made, where=f"model {value:g}", files={"config.json": b'{"num_hidden_layers": 5}'})


def planned(recipe: dict[str, Any], **models: Memory) -> Plan:
    read = Recipe.model_validate(recipe)
    return make_plan(read, {part.key: models.get(part.key, model()) for part in read.parts})


def statistics_of(name: str) -> Unread:
    """Statistics of `model` that no value is read of."""
    square = {"model.norm.weight": torch.ones(3, 3)} if name == "gram" else {}
    return model() if name == "fisher" else Unread(square, where=name)


def listed(*names: str, method: str = "linear", **more: Any) -> dict[str, Any]:
    return {"merge_method": method, "models": [{"model": n} for n in names], **more}


def test_t_runs_over_the_layers_and_is_nought_outside() -> None:
    plan = planned(listed("a", method="slerp", base_model="b", parameters={"t": [0, 1]}))
    for i in range(5):
        assert plan.tensors[f"model.layers.{i}.mlp.up.weight"].parameters["t"] == i / 4
    assert plan.tensors["model.norm.weight"].parameters["t"] == 0.0


def test_each_stack_has_its_own_t() -> None:
    two = Unread({f"{s}.block.{i}.x": torch.ones(1) for s, n in (("encoder", 2), ("decoder", 3)) for i in range(n)})
    plan = planned(listed("a", parameters={"weight": [1, 2]}), a=two)
    weights = {name: t.parameters["weight"] for name, t in plan.tensors.items()}
    assert list(weights.values()) == [(1.0,), (2.0,), (1.0,), (1.5,), (2.0,)]


def test_rules_look_at_names_and_the_model_goes_before_the_recipe() -> None:
    recipe = listed("a", "b", parameters={"weight": [{"filter": "mlp", "value": 2}, 3]})
    recipe["models"][1]["parameters"] = {"weight": [{"filter": "*.layers.[0-1].*", "value": 7}]}
    plan = planned(recipe)
    assert plan.tensors["model.layers.0.mlp.up.weight"].parameters["weight"] == (2.0, 7.0)
    assert plan.tensors["model.layers.2.mlp.up.weight"].parameters["weight"] == (2.0, 2.0)
    assert plan.tensors["model.layers.2.self_attn.q.weight"].parameters["weight"] == (3.0, 3.0)


def test_a_required_parameter_that_no_rule_gives_is_told_with_the_tensor() -> None:
    recipe = listed("a", method="slerp", base_model="b", parameters={"t": [{"filter": "mlp", "value": 0.5}]})
    with pytest.raises(FuseError, match='no value of "t"') as caught:
        planned(recipe)
    assert caught.value.where == "model.embed_tokens.weight"
    assert "without a filter" in str(caught.value)


def test_the_base_is_no_model_where_a_method_has_a_base() -> None:
    recipe = listed("b", "a", "c", method="task_arithmetic", base_model="b")
    tensor = planned(recipe).tensors["model.norm.weight"]
    assert tensor.base is not None
    assert (tensor.base.checkpoint, [i.checkpoint for i in tensor.inputs]) == (0, [1, 2])
    assert planned(listed("a", "c", method="task_arithmetic", base_model="b")).inputs == ("a", "c", "b")


def test_a_base_beside_the_models_is_one_more_model_where_a_method_has_no_base() -> None:
    recipe = listed("a", base_model="b", parameters={"weight": 1})
    recipe["models"][0]["parameters"] = {"weight": 3}
    tensor = planned(recipe).tensors["model.norm.weight"]
    assert tensor.base is None
    assert tensor.parameters["weight"] == (3.0, 1.0)
    # A median is about those that are listed; and in Python, a base only gives names and files to such a method.
    robust = planned(listed("a", "c", method="median", base_model="b"))
    assert len(robust.tensors["model.norm.weight"].inputs) == 2
    assert robust.inputs[robust.leader] == "b"
    assert len(fuse("linear", [model()], base=model()).plan.tensors["model.norm.weight"].inputs) == 1


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        (listed("a", "c", method="slerp", base_model="b", parameters={"t": 1}), "1 model besides the base for slerp"),
        (listed("a", "c", method="passthrough"), "1 model for passthrough"),
        (listed("a", method="model_stock", base_model="b"), "at least 2 models besides the base for model_stock"),
        (listed("a", method="slerp", base_model="b"), '"t", which slerp needs'),
    ],
)
def test_each_method_says_how_many_models_it_takes(recipe: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Recipe.model_validate(recipe)


def test_a_method_of_whole_models_has_the_same_parameters_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    row = dataclasses.replace(METHODS["linear"], scope="model")
    monkeypatch.setitem(METHODS, "whole", row)
    assert planned(listed("a", "b", method="whole", parameters={"weight": 2}))
    for setting in ([1, 2], [{"filter": "mlp", "value": 2}, 1]):
        with pytest.raises(PlannedError, match="the same for every tensor") as caught:
            planned(listed("a", "b", method="whole", parameters={"weight": setting}))
        assert caught.value.keys == ("parameters", "weight")
    slices = [{"sources": [{"model": m, "layer_range": [0, 2]}]} for m in "ab"]
    with pytest.raises(PlannedError, match="the same in every slice"):
        planned({"merge_method": "whole", "slices": slices})


def test_statistics_are_inputs_like_the_models(monkeypatch: pytest.MonkeyPatch) -> None:
    row = dataclasses.replace(METHODS["linear"], statistics={"fisher": Statistic()})
    monkeypatch.setitem(METHODS, "weighed", row)
    models = [{"model": m, "statistics": {"fisher": f"fisher-{m}"}} for m in "ab"]
    recipe = Recipe.model_validate({"merge_method": "weighed", "models": models})
    assert recipe.addresses == ("a", "b", "fisher-a", "fisher-b")
    plan = make_plan(recipe, {name: model() for name in recipe.addresses})
    places = plan.tensors["model.norm.weight"].statistics["fisher"]
    assert [plan.inputs[i.checkpoint] for i in places] == ["fisher-a", "fisher-b"]
    with pytest.raises(ValueError, match='"fisher", which weighed needs'):
        Recipe.model_validate({"merge_method": "weighed", "models": [{"model": "a"}]})
    with pytest.raises(FuseError, match="another shape"):
        make_plan(
            recipe, {**{n: model() for n in recipe.addresses}, "fisher-b": model(model__norm__weight=torch.ones(1))}
        )


@pytest.mark.parametrize(
    ("broken", "what", "said"),
    [
        ({"model__norm__weight": None}, "a tensor is missing", "no model.norm.weight"),
        ({"model__norm__weight": None, "model__nrm__weight": torch.ones(2, 3)}, "a tensor is missing", 'did you mean "model.nrm.weight"?'),
        ({"model__norm__weight": torch.ones(3)}, "a tensor has another shape", "[3]"),
        ({"model__embed_tokens__weight": torch.ones(3, 3)}, "a tensor has another shape", "tokenizer_source"),
        ({"model__norm__weight": torch.ones(2, 3).int()}, "a tensor has another kind of dtype", "I32"),
        ({"score__weight": torch.ones(1)}, "a model has tensors that the base lacks", "score.weight"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told_with_the_model_and_its_place_in_the_recipe(
    broken: dict[str, Any], what: str, said: str
) -> None:
    with pytest.raises(PlannedError) as caught:
        planned(listed("a", "b", "c"), b=model(2, **broken))
    assert caught.value.what == what
    assert "model 2" in str(caught.value.where)
    assert said in str(caught.value)
    assert caught.value.keys == ("models", 1)


def test_places_inside_a_recipe_inside_are_told_too() -> None:
    recipe = Recipe.model_validate({"merge_method": "linear", "models": [{"model": "a"}, {"model": listed("a", "b")}]})
    with pytest.raises(PlannedError) as caught:
        fuse_recipe(recipe, {"a": model(), "b": model(2, model__norm__weight=None)})
    assert caught.value.keys == ("models", 1, "model", "models", 1)


def test_weights_that_cancel_in_one_tensor_are_told_with_it() -> None:
    recipe = listed("a", "b")
    recipe["models"][1]["parameters"] = {"weight": [{"filter": "mlp", "value": -1}, 1]}
    with pytest.raises(FuseError, match="the weights sum to zero") as caught:
        planned(recipe)
    assert caught.value.where == "linear: model.layers.0.mlp.up.weight"


def test_what_a_model_computes_when_it_is_loaded_may_be_missing() -> None:
    name = "model__layers__0__self_attn__rotary_emb__inv_freq"
    plan = planned(listed("a", "b"), a=model(1, **{name: torch.ones(4)}))
    tensor = plan.tensors[name.replace("__", ".")]
    assert (tensor.method, [i.checkpoint for i in tensor.inputs]) == (None, [0])
    assert name.replace("__", ".") not in planned(listed("a", "b"), b=model(1, **{name: torch.ones(4)})).tensors


def read(value: float, *, config: dict[str, Any] | None = None, **more: torch.Tensor) -> Memory:
    files = {"config.json": json.dumps(config).encode()} if config else {}
    return Memory({"model.embed_tokens.weight": torch.full((2, 3), float(value)), **more}, files=files)


def test_a_head_that_one_model_ties_is_fused_with_the_embedding_of_that_model() -> None:
    head = {"lm_head.weight": torch.full((2, 3), 9.0)}
    tied = {"tie_word_embeddings": True}
    for models in (
        {"a": read(1, config=tied), "b": read(3, **head)},
        {"a": read(3, config=tied, **head), "b": read(1)},
    ):
        got = fuse_recipe(Recipe.model_validate(listed("a", "b")), models)
        assert got.read("model.embed_tokens.weight").tolist() == [[2.0] * 3] * 2
        assert got.read("lm_head.weight").tolist() == [[5.0] * 3] * 2
    got = fuse_recipe(Recipe.model_validate(listed("a", "b")), {"a": read(1, config=tied), "b": read(3, **head)})
    assert got.config["tie_word_embeddings"] is False  # or the head would be passed over when it is loaded
    untied = read(1, config={"tie_word_embeddings": False})
    with pytest.raises(FuseError, match="tensors that the base lacks"):
        fuse_recipe(Recipe.model_validate(listed("a", "b")), {"a": untied, "b": read(3, **head)})


def test_the_config_says_the_dtype_of_the_result() -> None:
    old, new = read(1, config={"torch_dtype": "float32"}), read(1, config={"dtype": "float32"})
    for models, key in ((old, "torch_dtype"), (new, "dtype")):
        recipe = Recipe.model_validate(listed("a", dtype="float32", out_dtype="bfloat16"))
        assert fuse_recipe(recipe, {"a": models}).config == {key: "bfloat16"}
    assert fuse_recipe(Recipe.model_validate(listed("a")), {"a": old}).files == old.files


def test_a_plan_is_frozen_hashable_and_printable() -> None:
    recipe = listed("a", "b", parameters={"weight": [0, 1], "normalize": False})
    plan, again = planned(recipe), planned(recipe)
    assert plan == again
    assert hash(plan) == hash(again)
    other = planned({**recipe, "seed": 1})
    assert plan != other
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.leader = 1  # type: ignore[misc]
    with pytest.raises(TypeError):
        plan.tensors["x"] = plan.tensors["model.norm.weight"]  # type: ignore[index]
    assert "model.layers.{4}.*" in str(plan)


def test_a_plan_is_the_same_for_the_same_names_and_shapes() -> None:
    recipe = listed("a", "b")
    assert planned(recipe) == planned(recipe, a=model(5), b=model(7))


def test_an_outline_folds_what_is_alike_and_counts_all() -> None:
    recipe = listed(
        "a", "b", method="ties", base_model="c", parameters={"density": [{"filter": "mlp", "value": 0.2}, 0.5]}
    )
    plan = planned(recipe)
    found = outline(plan, threads=3)
    assert [g.names for g in found.groups] == [
        "model.embed_tokens.weight",
        "model.layers.{0-4}.self_attn.q.weight",
        "model.layers.{0-4}.mlp.up.weight",
        "model.norm.weight",
    ]
    assert [g.action.parameters for g in found.groups] == ["density 0.5", "density 0.5", "density 0.2", "density 0.5"]
    assert sum(g.tensors for g in found.groups) == found.tensors == len(plan.tensors)
    assert sum(g.bytes for g in found.groups) == found.bytes_written == plan.bytes_written
    assert (found.bytes_read, found.reads, found.threads) == (3 * plan.bytes_written, 2, 3)
    assert json.loads(json.dumps(found.data))["groups"][2]["action"]["parameters"] == "density 0.2"
    whole = outline(planned(listed("a", "b")))
    assert [g.names for g in whole.groups][1] == "model.layers.{0-4}.*"


def test_an_outline_folds_experts_unless_they_differ() -> None:
    names = [f"model.layers.{i}.mlp.experts.{e}.{w}.weight" for i in range(2) for e in range(4) for w in ("up", "down")]
    moe = Unread({n: torch.ones(2) for n in names})

    def patterns(weight: Any) -> list[tuple[str, int]]:
        plan = planned(listed("a", parameters={"weight": weight}), a=moe)
        return [(group.names, group.tensors) for group in outline(plan).groups]

    assert patterns(2) == [("model.layers.{0-1}.*", 16)]
    assert patterns([{"filter": "up", "value": 2}, 1]) == [
        ("model.layers.{0-1}.mlp.experts.*.up.weight", 8),
        ("model.layers.{0-1}.mlp.experts.*.down.weight", 8),
    ]
    assert patterns([{"filter": "experts.2.", "value": 2}, 1]) == [
        ("model.layers.{0-1}.mlp.experts.2.*", 4),
        ("model.layers.{0-1}.* (the rest)", 12),
    ]


def test_an_outline_says_where_layers_come_from() -> None:
    slices = [{"sources": [{"model": m, "layer_range": r}]} for m, r in (("a", [0, 3]), ("b", [2, 5]))]
    lines = str(planned({"merge_method": "passthrough", "slices": slices})).splitlines()
    assert [" ".join(line.split()) for line in lines[1:3]] == [
        "model.layers.{0-2}.* passthrough F32 a",
        "model.layers.{3-5}.* passthrough F32 b -1",
    ]


def test_a_parameter_that_changes_nothing_is_noted() -> None:
    plan = planned(listed("a", "b", parameters={"density": 0.5}))
    assert plan.notes == ("density: linear has no such parameter; nothing changes",)
    assert "note: density" in str(plan)


def test_every_row_can_be_planned() -> None:
    for name, row in METHODS.items():
        count = max(3, row.models[0]) if row.models[1] is None else row.models[0]
        own = {n: p.default for n, p in row.parameters.items() if p.required}
        more = {"base_model": "base"} if row.needs_base else {}
        models = [{"model": f"m{i}", "statistics": {s: f"{s} {i}" for s in row.statistics}} for i in range(count)]
        recipe = Recipe.model_validate({"merge_method": name, "models": models, "parameters": own, **more})
        opened: dict[str, Checkpoint] = {address: model() for address in recipe.addresses}
        for i in range(count):
            opened |= {f"{s} {i}": statistics_of(s) for s in row.statistics}
        plan = make_plan(recipe, opened)
        tensor = plan.tensors["model.norm.weight"]
        assert (tensor.method, len(tensor.inputs), tensor.base is not None) == (name, count, bool(row.needs_base))
        assert set(tensor.parameters) == set(row.parameters)
        assert all(isinstance(v, tuple) == row.parameters[n].per_model for n, v in tensor.parameters.items())


def test_a_row_of_ones_own_is_planned_and_its_required_parameter_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    own = Method(METHODS["linear"].function, "block", False, {"weight": Parameter(0.0, per_model=True, required=True)})
    monkeypatch.setitem(METHODS, "own", own)
    assert isinstance(fuse("own", [model()], weights=[1.0]), Fused)
    with pytest.raises(FuseError, match="which own needs"):
        fuse("own", [model()])


@pytest.mark.parametrize(
    ("method", "count", "settings", "said"),
    [
        ("della", 2, {"density": 0.9, "epsilon": 0.2}, "density 0.9, epsilon 0.2"),
        ("della_linear", 1, {"density": 0.1, "epsilon": 0.1}, "density 0.1, epsilon 0.1"),
        ("krum", 4, {"byzantine": 1}, "4 models, byzantine 1"),
        ("multi_krum", 5, {"m": 6}, "m 6"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused_by_the_plan(
    method: str, count: int, settings: dict[str, Any], said: str
) -> None:
    models = [Memory({"x": torch.ones(2, 2)}) for _ in range(count)]
    base = models[0] if METHODS[method].needs_base else None
    with pytest.raises(FuseError, match=said):
        fuse(method, models, base=base, **settings)  # nothing has been read yet
