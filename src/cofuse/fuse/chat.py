"""The chat template of the result."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from ..checkpoint import Checkpoint
from ..checkpoint.views import with_files
from ..document import nearest
from ..errors import FuseError
from .tokenizer import CONFIG, json_bytes, object_in

JINJA = "chat_template.jinja"
_TURN = "{% if add_generation_prompt %}"

# Written from the formats' public descriptions.
TEMPLATES: dict[str, str] = {
    "chatml": (
        "{% for message in messages %}"
        "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
        "{% endfor %}" + _TURN + "{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "llama3": (
        "{{ bos_token }}{% for message in messages %}"
        "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
        "{{ message['content'] | trim }}{{ '<|eot_id|>' }}"
        "{% endfor %}" + _TURN + "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
    ),
    "alpaca": (
        "{% for message in messages %}"
        "{% if message['role'] == 'system' %}{{ message['content'] + '\n\n' }}"
        "{% elif message['role'] == 'user' %}{{ '### Instruction:\n' + message['content'] + '\n\n' }}"
        "{% else %}{{ '### Response:\n' + message['content'] + eos_token + '\n\n' }}{% endif %}"
        "{% endfor %}" + _TURN + "{{ '### Response:\n' }}{% endif %}"
    ),
    "mistral": (
        "{{ bos_token }}{% for message in messages %}"
        "{% if message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token }}"
        "{% else %}{{ '[INST] ' + message['content'] + ' [/INST]' }}{% endif %}"
        "{% endfor %}"
    ),
}


def with_chat_template(template: str | None, models: Mapping[str, Checkpoint], *, leader: str) -> dict[str, Checkpoint]:
    """The models, the leader's files with the template in them.

    Args:
        template: "auto" (what most of the models have), the name of a built-in one, or a template; None keeps the
            leader's. It goes to where the leader keeps its own: chat_template.jinja or tokenizer_config.json.
        models: by address.
        leader: the address of the one whose files become the result's.

    Raises:
        FuseError: neither a name of a built-in template nor a template.
    """
    chosen = _chosen(template, models)
    if chosen is None:
        return dict(models)
    files = dict(models[leader].files)
    config = object_in(files, CONFIG)
    files.pop("chat_template.json", None)
    if JINJA in files or CONFIG not in files:
        files[JINJA] = chosen.encode()
        if config.pop("chat_template", None) is not None:
            files[CONFIG] = json_bytes(config)
    else:
        files[CONFIG] = json_bytes({**config, "chat_template": chosen})
    return {**models, leader: with_files(models[leader], files)}


def chat_template_of(model: Checkpoint) -> str | None:
    """The template that a model's tokenizer uses by default, None where it has none."""
    if JINJA in model.files:
        return model.files[JINJA].decode(errors="replace")
    for name in ("chat_template.json", CONFIG):
        found = object_in(model.files, name).get("chat_template")
        if isinstance(found, list):
            found = {t.get("name"): t.get("template") for t in found if isinstance(t, Mapping)}
        if isinstance(found, Mapping):
            found = found.get("default")
        if isinstance(found, str) and found:
            return found
    return None


def _chosen(template: str | None, models: Mapping[str, Checkpoint]) -> str | None:
    if template is None:
        return None
    if template == "auto":
        own = [found.strip() for model in models.values() if (found := chat_template_of(model))]
        return Counter(own).most_common(1)[0][0] if own else None  # the first of equals
    if template in TEMPLATES:
        return TEMPLATES[template]
    if "{" not in template:
        raise FuseError(
            "not a chat template",
            where="chat_template",
            got=template,
            expected="auto, the name of a built-in one, or a template",
            hint=nearest(template, TEMPLATES),
        )
    return template
