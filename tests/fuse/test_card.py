"""Model cards say what the record says, in a form that the Hugging Face hub reads."""

from __future__ import annotations

from typing import Any

import yaml

from cofuse.fuse import Recipe
from cofuse.fuse.card import card
from cofuse.fuse.record import InputRecord, OutputRecord, Record

RECIPE = {
    "merge_method": "linear",
    "models": [{"model": "hf:org/one@v1"}, {"model": "./runs/two|x", "parameters": {"weight": 0.5}}],
}


def record() -> Record:
    inputs = (
        InputRecord(address="hf:org/one@v1", content="0" * 64),
        InputRecord(address="./runs/two|x", content=None),
    )
    output = OutputRecord(content="f" * 64, tensors=3, files={})
    return Record(recipe=RECIPE, seed=0, versions={"cofuse": "1.2", "numpy": "2"}, inputs=inputs, output=output)


def parts(text: str) -> tuple[dict[str, Any], str]:
    _, front, body = text.split("---\n", 2)
    return yaml.safe_load(front), body


def test_the_front_matter_is_what_the_hub_reads() -> None:
    front, _ = parts(card(record(), {"hf:org/one@v1": "org/one"}).decode())
    assert front == {
        "base_model": ["org/one"],
        "base_model_relation": "merge",
        "library_name": "transformers",
        "tags": ["merge", "cofuse"],
    }


def test_a_path_is_no_base_model() -> None:
    front, _ = parts(card(record(), {}).decode())
    assert "base_model" not in front


def test_inputs_content_and_recipe_stand_in_it() -> None:
    _, body = parts(card(record(), {"hf:org/one@v1": "org/one"}).decode())
    assert "| [hf:org/one@v1](https://huggingface.co/org/one) | `0000000000000000` |" in body
    assert "| `./runs/two\\|x` | no tensor read |" in body
    assert "f" * 64 in body
    written = body.split("```yaml\n")[1].split("```")[0]
    again = Recipe.model_validate(yaml.safe_load(written))
    assert again == Recipe.model_validate(RECIPE)
