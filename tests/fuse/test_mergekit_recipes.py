"""The recipes in examples/recipes on a family of small Llamas; tests/conformance compares them with mergekit's results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cofuse import address
from cofuse.checkpoint import Checkpoint, Memory, open_local
from cofuse.fuse import Fused, Recipe, fuse_recipe, read_recipe
from cofuse.fuse.outline import outline
from cofuse.fuse.slices import PlannedError

from .llama import FAMILY, LAYERS, OTHER, WORDS, family

EXAMPLES = Path(__file__).parents[2] / "examples/recipes"
every_example = pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda p: p.stem)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return family(tmp_path_factory.mktemp("family"))


def made(path: Path, here: Path) -> Fused:
    recipe = read_recipe(path)
    return fuse_recipe(recipe, {name: address.open(name, cwd=here) for name in recipe.addresses})


@pytest.fixture
def models(here: Path) -> dict[str, Checkpoint]:
    return {name: open_local(here / name) for name in FAMILY}


@every_example
def test_every_example_runs(path: Path, here: Path) -> None:
    got = made(path, here)
    assert all(torch.isfinite(got.read(n)).all() for n in got.names())
    layers = {n.split(".")[2] for n in got.names() if "layers" in n}
    assert len(layers) == got.config["num_hidden_layers"]
    assert got.spec("model.embed_tokens.weight").shape[0] == got.config["vocab_size"]
    dtypes = {str(got.read(n).dtype).removeprefix("torch.") for n in got.names()}
    assert dtypes == {got.config["torch_dtype"]}
    assert path.read_text().startswith("# "), "an example says what it is for"


@every_example
def test_every_example_is_the_same_plan_each_time(path: Path, here: Path) -> None:
    plan = made(path, here).plan
    assert plan == made(path, here).plan
    assert sum(group.tensors for group in outline(plan).groups) == len(plan.tensors)
    assert sum(group.bytes for group in outline(plan).groups) == plan.bytes_written


def test_the_frankenmerge_is_layers_of_both_as_they_are(here: Path, models: dict[str, Checkpoint]) -> None:
    got = made(EXAMPLES / "passthrough.yaml", here)
    for i in range(8):
        source, number = ("math", i) if i < 4 else ("code", i - 2)
        expected = models[source].read(f"model.layers.{number}.mlp.up_proj.weight")
        assert torch.equal(got.read(f"model.layers.{i}.mlp.up_proj.weight"), expected)
    assert torch.equal(got.read("model.embed_tokens.weight"), models["math"].read("model.embed_tokens.weight"))
    assert torch.equal(got.read("lm_head.weight"), models["code"].read("lm_head.weight"))


def test_repeated_layers_add_nothing_to_the_stream(here: Path) -> None:
    got = made(EXAMPLES / "self-merge.yaml", here)
    for i in range(9):
        silent = 3 <= i < 6
        assert (got.read(f"model.layers.{i}.mlp.down_proj.weight").count_nonzero() == 0) == silent
        assert got.read(f"model.layers.{i}.mlp.up_proj.weight").count_nonzero() > 0


def test_gradients_reach_the_ends_they_name(here: Path, models: dict[str, Checkpoint]) -> None:
    got = made(EXAMPLES / "slerp.yaml", here)
    ends = {"self_attn.q_proj": ("base", "math"), "mlp.up_proj": ("math", "base")}  # t = 0 is the base
    for part, names in ends.items():
        for number, name in zip((0, LAYERS - 1), names, strict=True):
            tensor = f"model.layers.{number}.{part}.weight"
            assert torch.equal(got.read(tensor), models[name].read(tensor).bfloat16())


def test_a_recipe_inside_a_recipe_is_the_same_as_two_steps(here: Path, tmp_path: Path) -> None:
    recipe = read_recipe(EXAMPLES / "nested.yaml")
    inner = recipe.models[0].model
    assert not isinstance(inner, str)
    opened = {name: address.open(name, cwd=here) for name in recipe.addresses}
    fuse_recipe(inner, opened).save(tmp_path / "between")
    outer = recipe.model_copy(
        update={"models": (recipe.models[0].model_copy(update={"model": "between"}), *recipe.models[1:])}
    )
    steps = fuse_recipe(outer, {**opened, "between": open_local(tmp_path / "between")})
    nested = fuse_recipe(recipe, opened)
    assert all(bytes(nested.read_bytes(n)) == bytes(steps.read_bytes(n)) for n in nested.names())


def test_vocabularies_are_joined_kept_and_padded(here: Path) -> None:
    joined = len({*WORDS, *OTHER})
    rows = {"union": joined, "base-tokens": len(WORDS), "tokens": -(-joined // 16) * 16}
    for name, count in rows.items():
        got = made(EXAMPLES / f"{name}.yaml", here)
        assert got.spec("lm_head.weight").shape[0] == got.config["vocab_size"] == count


def test_other_seeds_are_other_masks(here: Path) -> None:
    recipe = read_recipe(EXAMPLES / "globs.yaml")
    opened = {name: address.open(name, cwd=here) for name in recipe.addresses}
    name = "model.layers.4.mlp.up_proj.weight"
    ids = [bytes(fuse_recipe(recipe.model_copy(update={"seed": seed}), opened).read_bytes(name)) for seed in (7, 7, 8)]
    assert ids[0] == ids[1] != ids[2]


def test_a_part_of_a_model_is_fused_and_the_rest_kept(here: Path, models: dict[str, Checkpoint]) -> None:
    """As the language tower of a vision-language model with a plain one."""
    base = models["base"]
    tower = {f"language_model.{n}": base.read(n) for n in base.names()} | {"vision.w": torch.ones(3)}
    whole = Memory(tower, files=base.files)
    recipe = Recipe.model_validate(
        {
            "merge_method": "linear",
            "models": [
                {"model": "whole"},
                {"model": "math", "prefix": [{"from": "model.", "to": "language_model.model."}], "partial": True},
            ],
            "base_model": "whole",
        }
    )
    got = fuse_recipe(recipe, {"whole": whole, "math": models["math"]})
    assert set(got.names()) == set(whole.names())
    name = "model.layers.2.mlp.up_proj.weight"
    expected = (base.read(name) + models["math"].read(name)) / 2
    torch.testing.assert_close(got.read(f"language_model.{name}"), expected)
    assert torch.equal(got.read("vision.w"), torch.ones(3))
    assert Recipe.model_validate(recipe.canonical) == recipe


def test_a_model_may_have_an_adapter_behind_a_plus(here: Path, models: dict[str, Checkpoint]) -> None:
    """mergekit's `MODEL+LORA`."""
    name = "model.layers.1.self_attn.q_proj"
    a, b = torch.ones(1, 32), torch.arange(32.0)[:, None] / 100
    folder = here / "adapter"
    factors = {f"base_model.model.{name}.lora_A.weight": a, f"base_model.model.{name}.lora_B.weight": b}
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 2, "target_modules": ["q_proj"]}
    folder.mkdir()
    save_file(factors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    recipe = Recipe.model_validate({"merge_method": "linear", "models": [{"model": "./base+./adapter"}]})
    got = fuse_recipe(recipe, {one: address.open(one, cwd=here) for one in recipe.addresses})
    torch.testing.assert_close(got.read(f"{name}.weight"), models["base"].read(f"{name}.weight") + 2 * b @ a)
    assert torch.equal(got.read("model.norm.weight"), models["base"].read("model.norm.weight"))


def test_a_chat_template_is_written_and_a_wrong_one_told_with_its_place(models: dict[str, Checkpoint]) -> None:
    recipe = {"merge_method": "linear", "models": [{"model": "base"}, {"model": "math"}], "chat_template": "chatml"}
    got = fuse_recipe(Recipe.model_validate(recipe), models)
    assert any(b"<|im_start|>" in data for data in got.files.values())
    with pytest.raises(PlannedError) as caught:
        fuse_recipe(Recipe.model_validate({**recipe, "chat_template": "chatlm"}), models)
    assert caught.value.keys == ("chat_template",)
    with pytest.raises(PlannedError) as caught:
        fuse_recipe(
            Recipe.model_validate(
                {**recipe, "models": [{"model": "math"}, {"model": "base", "prefix": {"from": "x", "to": "y"}}]}
            ),
            models,
        )
    assert caught.value.keys == ("models", 1, "model")
