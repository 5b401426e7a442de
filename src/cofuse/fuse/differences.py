"""What may differ between a model and the one whose names and config the result has: one small check for each."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, TypeAlias

from ..checkpoint import Checkpoint
from ..checkpoint.architecture import HEAD, LANGUAGE, has_head, stacks, vocabulary_axis
from ..checkpoint.dtypes import FLOATING
from ..errors import FuseError
from .chat import chat_template_of
from .findings import Finding
from .joining import same_files, vocabulary_rows
from .tokenizer import CONFIG, difference, object_in, read_tokenizer

# Sizes of the config whose difference shows in the tensors' shapes: no setting helps.
SIZES = (
    "hidden_size",
    "n_embd",
    "d_model",
    "intermediate_size",
    "d_ff",
    "head_dim",
    "num_experts",
    "num_local_experts",
)
# Values that change what the same weights compute; the result has the base's.
MEANINGS: Mapping[str, str] = {
    "model_type": "the same names may mean other computations",
    "num_attention_heads": "the same matrix is cut into other heads",
    "n_head": "the same matrix is cut into other heads",
    "num_key_value_heads": "the same matrix is cut into other heads",
    "hidden_act": "the weights were trained for another activation",
    "hidden_activation": "the weights were trained for another activation",
    "rms_norm_eps": "activations differ slightly",
    "layer_norm_eps": "activations differ slightly",
    "sliding_window": "attention reaches another number of tokens",
    "num_experts_per_tok": "other numbers of experts are mixed",
}
# Where positions enter: older configs have two keys, newer ones `rope_parameters`.
ROPE = ("rope_theta", "rope_scaling", "rope_parameters", "max_position_embeddings", "partial_rotary_factor")
SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "image_token_id", "unk_token_id")
SPECIAL_WORDS = ("bos_token", "eos_token", "pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
TOKENIZER = "tokenizer_source: union (every token), base, pad (rows by number), or a model"

# Compares one model with the one that leads: both with their addresses.
Check: TypeAlias = Callable[[str, Checkpoint, str, Checkpoint], Iterator[Finding]]


def _tensors(a: str, model: Checkpoint, b: str, first: Checkpoint) -> Iterator[Finding]:
    ours, theirs = {*first.names(), *first.aliases}, {*model.names(), *model.aliases}
    heads = {n for n in ours ^ theirs if HEAD.search(n)}  # a tied one may be missing: told below
    missing, extra = sorted(ours - theirs - heads), sorted(theirs - ours - heads)
    mine, own = stacks(model.names()), stacks(first.names())
    layers = {s: (mine[s], own[s]) for s in mine.keys() & own.keys() if mine[s] != own[s]}
    for stack, (got, expected) in sorted(layers.items()):
        yield Finding(
            "stop",
            "layers",
            (a, b),
            f"{got} layers in {stack}",
            str(expected),
            "layers cannot be fused one with one",
            "slices, each with a layer_range of as many layers",
            ("slices",),
        )
    if layers:
        return
    if missing:
        yield Finding(
            "stop",
            "missing tensors",
            (a, b),
            f"no {missing[0]}" + _more(missing),
            "",
            "there is nothing to fuse with",
            "partial: true keeps the base's; prefix: {from: ..., to: ...} where only the names differ",
            ("partial", "prefix"),
        )
    if extra:
        yield Finding(
            "stop",
            "other tensors",
            (a, b),
            extra[0] + _more(extra),
            "",
            "the result has no place for them",
            "partial: true leaves them out; cofuse body takes a head off",
            ("partial", "prefix"),
        )


def _shapes(a: str, model: Checkpoint, b: str, first: Checkpoint) -> Iterator[Finding]:
    sizes = [
        f"{key} {at_language(model, key)} and {at_language(first, key)}"
        for key in SIZES
        if at_language(model, key) != at_language(first, key)
        and None not in (at_language(model, key), at_language(first, key))
    ]
    other = [
        n
        for n in first.names()
        if n in model
        and model.spec(n).shape != first.spec(n).shape
        and vocabulary_axis(n, first.spec(n), first.config) is None
    ]
    if other:
        name = other[0]
        yield Finding(
            "stop",
            "shapes",
            (a, b),
            f"{name} {list(model.spec(name).shape)}" + _more(other) + (f"; {', '.join(sizes)}" if sizes else ""),
            str(list(first.spec(name).shape)),
            "models of different sizes cannot be fused",
        )


def _vocabularies(a: str, model: Checkpoint, b: str, first: Checkpoint) -> Iterator[Finding]:
    mine, own = vocabulary_rows(model), vocabulary_rows(first)
    keys = ("tokenizer_source", "tokenizer")
    for name in own:
        if name in mine and mine[name][1] != own[name][1]:
            yield Finding(
                "stop",
                "vocabulary size",
                (a, b),
                f"{mine[name][1]} rows in {name}",
                str(own[name][1]),
                "rows that one of them lacks cannot be fused",
                TOKENIZER,
                keys,
            )
            break
    if not own or same_files(model, first):
        return
    try:
        theirs, ours = read_tokenizer(model), read_tokenizer(first)
    except FuseError as error:
        yield Finding("warn", "tokenizer", (a, b), error.line, "", "the tokens cannot be compared")
        return
    if theirs is None or ours is None:
        if (theirs is None) != (ours is None):
            lacking = a if theirs is None else b
            yield Finding(
                "note", "tokenizer", (lacking,), "no tokenizer", "", "it is taken to have the other's", "", keys
            )
        return
    if theirs.same_as(ours):
        return
    if theirs.opaque is not None or ours.opaque is not None:
        yield Finding(
            "warn", "tokens", (a, b), "SentencePiece models that differ", "",
            "whether a row stands for the same token in both is not known",
            "a tokenizer.json, which transformers writes when it saves the tokenizer", keys,
        )  # fmt: skip
        return
    found = difference(theirs, ours)
    said = [
        *([f"{len(found.first)} tokens of its own ({_some(found.first)})"] if found.first else []),
        *([f"{len(found.second)} lacking ({_some(found.second)})"] if found.second else []),
        *([f"{len(found.moved)} with another id"] if found.moved else []),
    ]
    crossed = bool(found.crossed)
    yield Finding(
        "stop" if crossed else "warn",
        "tokens",
        (a, b),
        ", ".join(said),
        "",
        "rows of different tokens would be mixed" if crossed else "the result's tokenizer is the base's",
        TOKENIZER,
        keys,
    )


def _special_tokens(a: str, model: Checkpoint, b: str, first: Checkpoint) -> Iterator[Finding]:
    said = [*_differing(model, first, SPECIAL)]
    mine, own = (object_in(cp.files, CONFIG) for cp in (model, first))
    for key in SPECIAL_WORDS:
        if key in mine and key in own and _word(mine[key]) != _word(own[key]):
            said.append((key, _word(mine[key]), _word(own[key])))
    if said:
        yield Finding(
            "warn",
            "special tokens",
            (a, b),
            ", ".join(f"{key} {got}" for key, got, _ in said),
            ", ".join(str(expected) for _, _, expected in said),
            "the result has the base's: what the model learned to say at a turn's end may not stop it",
            "tokenizer_source: the model whose special tokens are meant",
            ("tokenizer_source", "tokenizer"),
        )


def _rope(a: str, model: Checkpoint, b: str, first: Checkpoint) -> Iterator[Finding]:
    for key, got, expected in _differing(model, first, ROPE, absent=True):
        # A longer context is said in two places; only the one that turns the vectors is grave.
        grave = key != "max_position_embeddings"
        yield Finding(
            "warn" if grave else "note",
            "positions",
            (a, b),
            f"{key} {got}",
            str(expected),
            "attention was trained with other rotations; the result has the base's"
            if grave
            else "the result has the base's context length",
            "base_model, whose config the result has",
        )


def _meanings(a: str, model: Checkpoint, b: str, first: Checkpoint) -> Iterator[Finding]:
    for key, got, expected in _differing(model, first, tuple(MEANINGS)):
        yield Finding(
            "note" if key.endswith("_eps") else "warn",
            "config",
            (a, b),
            f"{key} {got}",
            str(expected),
            f"{MEANINGS[key]}; the result has the base's",
            "base_model, whose config the result has",
        )


def _heads(a: str, model: Checkpoint, b: str, first: Checkpoint) -> Iterator[Finding]:
    mine, own = _tied(model), _tied(first)
    if mine is not None and own is not None and mine != own:
        yield Finding(
            "warn",
            "tied head",
            (a, b),
            "its head is its embedding" if mine else "a head of its own",
            "tied" if own else "a head of its own",
            "the tied one's embedding is fused with the other's head; the result has a head of its own",
        )


def _dtypes(a: str, model: Checkpoint, b: str, first: Checkpoint) -> Iterator[Finding]:
    mine, own = (_floats(cp) for cp in (model, first))
    if mine != own:
        yield Finding(
            "note",
            "dtypes",
            (a, b),
            ", ".join(sorted(mine)),
            ", ".join(sorted(own)),
            "sums are taken in float32; each tensor is rounded to the base's dtype",
            "out_dtype",
            ("dtype", "out_dtype"),
        )


def _templates(a: str, model: Checkpoint, b: str, first: Checkpoint) -> Iterator[Finding]:
    mine, own = chat_template_of(model), chat_template_of(first)
    if (mine or "").strip() != (own or "").strip():
        yield Finding(
            "warn" if mine else "note",
            "chat template",
            (a, b),
            "another one" if mine and own else "one" if mine else "none",
            "" if own else "none",
            "the result has the base's: models that learned another format may answer badly in it",
            "chat_template: auto, chatml, llama3, alpaca, mistral, or a template",
            ("chat_template",),
        )


def _parents(a: str, model: Checkpoint, b: str, first: Checkpoint) -> Iterator[Finding]:
    said = [model.config.get("_name_or_path"), *_card_bases(model)]
    names = [s for s in said if isinstance(s, str) and s]
    own = {
        b.rstrip("/").rsplit("/", 1)[-1].lower(),
        str(first.config.get("_name_or_path") or "").rsplit("/", 1)[-1].lower(),
    }
    if names and not any(n.rstrip("/").rsplit("/", 1)[-1].lower() in own for n in names):
        yield Finding(
            "note",
            "parent",
            (a, b),
            f"it says it comes from {', '.join(dict.fromkeys(names))}",
            "",
            "a task vector means little from another base; the deltas below say more than names",
            "base_model",
        )


# Every check, in the order in which findings of one severity are told.
CHECKS: tuple[Check, ...] = (
    _tensors,
    _shapes,
    _vocabularies,
    _special_tokens,
    _rope,
    _meanings,
    _heads,
    _templates,
    _parents,
    _dtypes,
)


def at_language(checkpoint: Checkpoint, key: str) -> Any:
    """A value of the config's part for the language model, else of the config itself."""
    for config in (*(checkpoint.config.get(k) for k in LANGUAGE), checkpoint.config):
        if isinstance(config, Mapping) and config.get(key) is not None:
            return config[key]
    return None


def _differing(
    model: Checkpoint, first: Checkpoint, keys: tuple[str, ...], *, absent: bool = False
) -> Iterator[tuple[str, Any, Any]]:
    if not model.config or not first.config:
        return
    for key in keys:
        got, expected = at_language(model, key), at_language(first, key)
        if got != expected and (absent or None not in (got, expected)):
            yield key, got, expected


def _tied(model: Checkpoint) -> bool | None:
    """Whether the head is the embedding; None where there is no vocabulary."""
    if not vocabulary_rows(model):
        return None
    if has_head(model.aliases):
        return True
    if has_head(model.names()):
        return False
    return True if at_language(model, "tie_word_embeddings") else None


def _floats(model: Checkpoint) -> frozenset[str]:
    return frozenset(model.spec(n).dtype for n in model.names()) & FLOATING


def _card_bases(model: Checkpoint) -> list[str]:
    """What a model card's head names as `base_model`."""
    card = model.files.get("README.md", b"")[:4096].decode(errors="replace")
    head = re.match(r"---\n(.*?)\n---", card, re.DOTALL)
    found = re.search(r"^base_model:[ \t]*(\S.*)?((?:\n[ \t]*- .*)*)", head.group(1) if head else "", re.MULTILINE)
    if found is None:
        return []
    return [found.group(1).strip()] if found.group(1) else re.findall(r"- *(\S+)", found.group(2))


def _word(token: Any) -> Any:
    return token.get("content") if isinstance(token, Mapping) else token


def _more(names: Collection[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


def _some(tokens: tuple[str, ...]) -> str:
    return ", ".join(map(repr, tokens[:3])) + (", ..." if len(tokens) > 3 else "")
