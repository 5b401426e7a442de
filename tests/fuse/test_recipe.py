"""Recipes: mergekit's YAML as it stands, and every mistake told with its line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from cofuse.document import parse_document
from cofuse.errors import DocumentError
from cofuse.fuse import METHODS, ModelInput, Parameter, Recipe, read_recipe
from cofuse.fuse.recipe import DTYPE_WORDS, check_parameter, key_of
from cofuse.fuse.settings import Rule

LINEAR = """\
models:
  - model: org/one
    parameters:
      weight: 1.0
  - model: org/two
    parameters:
      weight: 0.3
merge_method: linear
dtype: float16
"""

ARITHMETIC = """\
merge_method: task_arithmetic
base_model: org/base
models:
  - model: org/base
  - model: org/one
    parameters: {weight: 0.5}
  - model: org/two
parameters:
  weight: 0.25
  lambda: 0.7
  normalize: true
out_dtype: bfloat16
"""

SLICES = """\
merge_method: task_arithmetic
base_model: org/base
slices:
  - sources:
      - {model: org/one, layer_range: [0, 4], parameters: {weight: [0, 1]}}
      - {model: org/base, layer_range: [0, 4]}
  - sources:
      - {model: org/two, layer_range: [4, 8]}
      - {model: org/base, layer_range: [4, 8]}
    parameters: {weight: [{filter: mlp, value: 0.5}, {value: 1}]}
"""


def test_mergekit_recipes_load(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(LINEAR)
    linear = read_recipe(tmp_path / "r.yaml")
    assert linear.models == (
        ModelInput(model="org/one", parameters={"weight": 1.0}),
        ModelInput(model="org/two", parameters={"weight": 0.3}),
    )
    assert (linear.merge_method, linear.dtype, linear.base_model) == ("linear", "float16", None)
    arithmetic = parse_document(ARITHMETIC, Recipe)
    assert arithmetic.addresses == ("org/base", "org/one", "org/two")
    assert arithmetic.parameters == {"weight": 0.25, "lambda": 0.7, "normalize": True}


@pytest.mark.parametrize(
    ("text", "was", "now", "what", "line", "said"),
    [
        (LINEAR, "merge_method", "merge_methd", 'unknown key "merge_methd"', 8, 'did you mean "merge_method"?'),
        (LINEAR, "linear", "linaer", 'bad value of "merge_method"', 8, 'did you mean "linear"?'),
        (LINEAR, "weight: 0.3", "wieght: 0.3", 'unknown key "wieght"', 7, 'did you mean "weight"?'),
        (LINEAR, "weight: 0.3", "weight: heavy", 'bad value of "models.1.parameters.weight"', 7, "number"),
        (LINEAR, "weight: 0.3", "weight: yes", 'bad value of "models.1.parameters.weight"', 7, "number"),
        (LINEAR, "weight: 0.3", "weight: .nan", 'bad value of "models.1.parameters.weight"', 7, "finite"),
        (LINEAR, "weight: 0.3", "weight: [0, heavy]", 'bad value of "models.1.parameters.weight.1"', 7, "number"),
        (LINEAR, "weight: 0.3", "weight: [0, [1]]", 'bad value of "models.1.parameters.weight.1"', 7, "or a list of them"),
        (LINEAR, "weight: 0.3", "weight: {value: .inf}", 'bad value of "models.1.parameters.weight.value"', 7, "finite"),
        (LINEAR, "weight: 0.3", "weight: [{filter: mlp, value: [1, x]}]", 'bad value of "models.1.parameters.weight.0.value.1"', 7, "number"),
        (LINEAR, "weight: 0.3", "weight: [{fliter: mlp, value: 1}]", 'unknown key "fliter"', 7, 'did you mean "filter"?'),
        (LINEAR, "weight: 0.3", "weight: [{filter: mlp}]", 'bad value of "models.1.parameters.weight.0"', 7, '"value" beside the filter'),
        (LINEAR, "weight: 0.3", "weight: [{filter: 3, value: 1}]", 'bad value of "models.1.parameters.weight.0.filter"', 7, "glob"),
        (LINEAR, "model: org/two", "model: org/one", 'bad value of "models.1.model"', 5, "each model once"),
        (LINEAR, "dtype: float16", "seed: x", 'bad value of "seed"', 9, "integer"),
        (LINEAR, "dtype: float16", "base_model: org/three", 'bad value of "base_model"', 9, "counts the base as one more model"),
        (LINEAR, "dtype: float16", "modules: {default: {}}", 'bad value of "modules"', 9, "models or slices"),
        (LINEAR, "dtype: float16", "slices: [{sources: [{model: a, layer_range: [0, 1]}]}]", 'bad value of "models"', 1, "not both"),
        (LINEAR, "dtype: float16", "tokenizer_source: base\ntokenizer: {source: base}", 'bad value of "tokenizer_source"', 9, "one of"),
        (LINEAR, "model: org/two", "model: {merge_method: linaer, models: [{model: a}]}", 'bad value of "models.1.model.merge_method"', 5, 'did you mean "linear"?'),
        (LINEAR, "model: org/two", "model: {merge_method: linear, models: [{model: a, parameters: {weigth: 1}}]}", 'unknown key "weigth"', 5, 'did you mean "weight"?'),
        (LINEAR, "model: org/two", "model: org/two\n    statistics: {fisher: org/fisher}", 'bad value of "models.1.statistics.fisher"', 6, "linear takes no statistics"),
        (SLICES, "[0, 4]", "[4, 4]", 'bad value of "slices.0.sources.0.layer_range"', 5, "eight layers"),
        (SLICES, "one, layer_range: [0, 4]", "one, layer_range: [0, 5]", 'bad value of "slices.0.sources.1.layer_range"', 6, "as many layers as [0, 5]"),
        (SLICES, "[0, 4]", "[0, four]", 'bad value of "slices.0.sources.0.layer_range.1"', 5, "integer"),
        (SLICES, "model: org/base, l", "model: org/one, l", 'bad value of "slices.0.sources.1.model"', 6, "each model once"),
        (SLICES, "sources", "sorces", 'unknown key "sorces"', 4, 'did you mean "sources"?'),
        (SLICES, "base_model: org/base", "base_model: org/other", 'bad value of "slices.0.sources"', 4, "the base among the sources"),
        (LINEAR, "weight: 0.3", "normalize: true", 'bad value of "models.1.parameters.normalize"', 7, "whole recipe"),
        (LINEAR, "float16", "flaot16", 'bad value of "dtype"', 9, 'did you mean "float16"?'),
        (LINEAR, "model: org/two", "model: [a]", 'bad value of "models.1.model"', 5, "string"),
        (LINEAR, "model: org/two", "modle: org/two", 'unknown key "modle"', 5, 'did you mean "model"?'),
        (LINEAR, "merge_method: linear", "merge_method: task_arithmetic", 'bad value of "document"', 1, "base_model"),
        (ARITHMETIC, "lambda: 0.7", "lamda: 0.7", 'unknown key "lamda"', 10, 'did you mean "lambda"?'),
        (ARITHMETIC, "normalize: true", "normalize: 2", 'bad value of "parameters.normalize"', 11, "true or false"),
        (ARITHMETIC, "bfloat16", "bflaot16", 'bad value of "out_dtype"', 12, 'did you mean "bfloat16"?'),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_its_line(text: str, was: str, now: str, what: str, line: int, said: str) -> None:
    assert was in text
    with pytest.raises(DocumentError) as caught:
        parse_document(text.replace(was, now), Recipe, where="r.yaml")
    assert caught.value.what == what
    assert caught.value.where == f"r.yaml:{line}"
    assert said in str(caught.value), str(caught.value)


def test_numbers_may_stand_in_quotes_as_in_mergekit() -> None:
    for text in ("'0.3'", "0.3", "3e-1", "'3e-1'"):
        recipe = parse_document(LINEAR.replace("weight: 0.3", f"weight: {text}"), Recipe)
        assert recipe.models[1].parameters == {"weight": 0.3}
    for text in ("1", "1.0", "'true'", "yes"):
        assert parse_document(ARITHMETIC.replace("normalize: true", f"normalize: {text}"), Recipe)


def test_slices_gradients_and_filters_are_read() -> None:
    recipe = parse_document(SLICES, Recipe)
    assert recipe.addresses == ("org/base", "org/one", "org/two")
    assert recipe.slices[0].sources[0].layer_range == (0, 4)
    assert recipe.slices[0].sources[0].parameters == {"weight": (0, 1)}
    assert recipe.slices[1].parameters == {"weight": (Rule(filter="mlp", value=0.5), Rule(value=1))}
    assert parse_document("merge_method: linear\nparameters:\nmodels:\n- model: a\n  parameters:\n", Recipe)


def test_a_recipe_may_stand_in_place_of_a_model() -> None:
    inner = {"merge_method": "linear", "models": [{"model": "org/one"}, {"model": "org/three"}]}
    recipe = Recipe.model_validate({"merge_method": "linear", "models": [{"model": inner}, {"model": "org/two"}]})
    assert recipe.addresses == ("org/one", "org/three", "org/two")
    assert [part.key for part in recipe.parts] == [key_of(Recipe.model_validate(inner)), "org/two"]


@pytest.mark.parametrize("text", [LINEAR, ARITHMETIC, SLICES])
def test_the_canonical_form_reads_back(text: str) -> None:
    recipe = parse_document(text, Recipe)
    again = Recipe.model_validate(json.loads(json.dumps(recipe.canonical)))
    assert again == recipe
    assert (again.id, hash(again)) == (recipe.id, hash(recipe))
    assert parse_document(yaml.safe_dump(recipe.canonical), Recipe) == recipe


def test_a_parameter_of_another_method_changes_nothing_and_is_told() -> None:
    # People leave such keys behind when they try another method, and mergekit passes over them.
    text = LINEAR.replace("weight: 0.3", "weight: 0.3\n      lambda: 2")
    assert parse_document(text, Recipe).idle == ("lambda",)


def test_settings_can_be_changed_by_their_path(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(LINEAR)
    changed = read_recipe(tmp_path / "r.yaml", {"parameters.normalize": False, "models.0.parameters.weight": 2})
    assert changed.parameters == {"normalize": False}
    assert changed.models[0].parameters == {"weight": 2}


def test_models_are_needed() -> None:
    with pytest.raises(DocumentError, match='"models"'):
        parse_document("merge_method: linear\nmodels: []\n", Recipe)


def test_a_range_is_kept() -> None:
    known = {"density": Parameter(1.0, per_model=True, low=0.0, high=1.0)}
    for value in (0, 0.5, 1.0):
        check_parameter("density", value, known, per_model=True)
    for value in (-0.1, 1.5):
        with pytest.raises(ValueError, match=r"lies between 0\.0 and 1\.0"):
            check_parameter("density", value, known, per_model=True)
    with pytest.raises(ValueError, match="finite"):
        check_parameter("density", float("nan"), known, per_model=True)


def test_the_id_says_what_the_recipe_says() -> None:
    recipe = parse_document(ARITHMETIC, Recipe)
    assert recipe.id == parse_document(ARITHMETIC + "\n# a comment\n", Recipe).id
    flow = "{merge_method: linear, dtype: float16, models: [{model: org/one, parameters: {weight: 1.0}}, {model: org/two, parameters: {weight: 0.3}}]}"
    assert parse_document(LINEAR, Recipe).id == parse_document(flow, Recipe).id
    assert parse_document(LINEAR, Recipe).id != parse_document(LINEAR.replace("0.3", "0.4"), Recipe).id


@pytest.mark.parametrize("method", METHODS)
def test_the_documents_name_every_method_parameter_and_dtype(method: str) -> None:
    text = (Path(__file__).parents[2] / "docs/formats/recipe.md").read_text()
    assert f"`{method}`" in text
    assert all(f"`{name}`" in text for name in (*METHODS[method].parameters, *DTYPE_WORDS, *Recipe.model_fields))
