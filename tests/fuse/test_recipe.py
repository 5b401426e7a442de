"""Recipes: mergekit's YAML as it stands, and every mistake told with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from cofuse.document import parse_document
from cofuse.errors import DocumentError
from cofuse.fuse import METHODS, ModelInput, Parameter, Recipe, read_recipe
from cofuse.fuse.recipe import DTYPE_WORDS, check_parameter

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
        (LINEAR, "weight: 0.3", "weight: '0.3'", 'bad value of "models.1.parameters.weight"', 7, "number"),
        (LINEAR, "weight: 0.3", "weight: yes", 'bad value of "models.1.parameters.weight"', 7, "number"),
        (LINEAR, "weight: 0.3", "weight: .nan", 'bad value of "models.1.parameters.weight"', 7, "finite"),
        (LINEAR, "weight: 0.3", "weight: [0, 1]", 'bad value of "models.1.parameters.weight"', 7, "number"),
        (LINEAR, "weight: 0.3", "normalize: true", 'bad value of "models.1.parameters.normalize"', 7, "whole recipe"),
        (LINEAR, "float16", "flaot16", 'bad value of "dtype"', 9, 'did you mean "float16"?'),
        (LINEAR, "model: org/two", "model: [a]", 'bad value of "models.1.model"', 5, "string"),
        (LINEAR, "model: org/two", "modle: org/two", 'unknown key "modle"', 5, 'did you mean "model"?'),
        (LINEAR, "merge_method: linear", "merge_method: task_arithmetic", 'bad value of "document"', 1, "base_model"),
        (ARITHMETIC, "lambda: 0.7", "lamda: 0.7", 'unknown key "lamda"', 10, 'did you mean "lambda"?'),
        (ARITHMETIC, "normalize: true", "normalize: 1", 'bad value of "parameters.normalize"', 11, "true or false"),
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
