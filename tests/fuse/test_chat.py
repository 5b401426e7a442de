"""The chat template of the result: the most common, a built-in one, or a given one."""

from __future__ import annotations

import json
from typing import Any

import jinja2
import pytest
import torch

from cofuse.checkpoint import Checkpoint, Memory
from cofuse.errors import FuseError
from cofuse.fuse.chat import TEMPLATES, chat_template_of, with_chat_template

TALK = [
    {"role": "system", "content": "S"},
    {"role": "user", "content": "U"},
    {"role": "assistant", "content": "A"},
    {"role": "user", "content": "V"},
]


def model(template: Any = None, jinja: str | None = None, **files: bytes) -> Checkpoint:
    config = {
        "tokenizer_config.json": json.dumps({"x": 1} | ({"chat_template": template} if template else {})).encode()
    }
    more = {"chat_template.jinja": jinja.encode()} if jinja else {}
    return Memory({"w": torch.zeros(1)}, files={**config, **more, **files})


def rendered(template: str, prompt: bool = True) -> str:
    return jinja2.Template(template).render(
        messages=TALK, add_generation_prompt=prompt, bos_token="<s>", eos_token="</s>"
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "chatml",
            "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n"
            "<|im_start|>user\nV<|im_end|>\n<|im_start|>assistant\n",
        ),
        (
            "llama3",
            "<s><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
            "U<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nA<|eot_id|><|start_header_id|>user"
            "<|end_header_id|>\n\nV<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        (
            "alpaca",
            "S\n\n### Instruction:\nU\n\n### Response:\nA</s>\n\n### Instruction:\nV\n\n### Response:\n",
        ),
        ("mistral", "<s>[INST] S [/INST][INST] U [/INST] A</s>[INST] V [/INST]"),
    ],
)
def test_built_in_templates_say_what_their_formats_say(name: str, expected: str) -> None:
    assert rendered(TEMPLATES[name]) == expected


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_no_prompt_is_added_unless_asked_for(name: str) -> None:
    assert rendered(TEMPLATES[name]).startswith(rendered(TEMPLATES[name], prompt=False))


def test_a_template_goes_to_where_the_leader_keeps_its_own() -> None:
    models = {"a": model("old {{ x }}"), "b": model()}
    chosen = with_chat_template("{{ messages }} of mine", models, leader="a")
    assert json.loads(chosen["a"].files["tokenizer_config.json"]) == {"x": 1, "chat_template": "{{ messages }} of mine"}
    assert "chat_template.jinja" not in chosen["a"].files
    assert chosen["b"] is models["b"]
    chosen = with_chat_template("chatml", {"a": model("old", jinja="older")}, leader="a")
    assert chosen["a"].files["chat_template.jinja"].decode() == TEMPLATES["chatml"]
    assert json.loads(chosen["a"].files["tokenizer_config.json"]) == {"x": 1}
    assert chat_template_of(chosen["a"]) == TEMPLATES["chatml"]
    bare = with_chat_template("chatml", {"a": Memory({"w": torch.zeros(1)})}, leader="a")
    assert chat_template_of(bare["a"]) == TEMPLATES["chatml"]


def test_auto_is_what_most_have_and_the_first_of_equals() -> None:
    models = {
        "a": model("{{ a }}"),
        "b": model(jinja="{{ b }}\n"),
        "c": model([{"name": "default", "template": "{{ b }}"}]),
    }
    assert chat_template_of(with_chat_template("auto", models, leader="a")["a"]) == "{{ b }}"
    models.pop("c")
    assert chat_template_of(with_chat_template("auto", models, leader="a")["a"]) == "{{ a }}"
    none = {"a": model()}
    assert with_chat_template("auto", none, leader="a")["a"] is none["a"]


def test_nothing_said_changes_nothing() -> None:
    models = {"a": model("{{ a }}")}
    assert with_chat_template(None, models, leader="a")["a"] is models["a"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"template": {"default": "{{ d }}", "tool": "{{ t }}"}}, "{{ d }}"),
        ({"chat_template.json": b'{"chat_template": "{{ j }}"}'}, "{{ j }}"),
        ({"tokenizer_config.json": b"not json"}, None),
    ],
)
def test_templates_are_found_wherever_they_stand(given: dict[str, Any], expected: str | None) -> None:
    assert chat_template_of(model(**given)) == expected


def test_a_word_that_names_nothing_is_refused() -> None:
    with pytest.raises(FuseError, match='did you mean "chatml"'):
        with_chat_template("chatlm", {"a": model()}, leader="a")
