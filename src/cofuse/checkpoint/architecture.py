"""What names and a config say about an architecture: small tables, never a class for a model.

Tables only add: an architecture nobody has heard of has no layers and no vocabulary here, and fuses by its names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from .checkpoint import TensorSpec

Config: TypeAlias = Mapping[str, Any]
Path: TypeAlias = tuple[str, ...]  # keys from the outside in: ("text_config", "vocab_size")

# Where layer numbers stand in names. The first match of a name counts, so what is numbered inside a layer (T5's
# `block.0.layer.1`, experts, the attentions of a UNet's block) is no layer.
#   layers.N h.N block.N             decoder LLMs, T5, ViT, BART, CLIP
#   encoder.layer.N transformer.layer.N   BERT and its kin
#   down_blocks.N up_blocks.N        UNet
#   transformer_blocks.N single_transformer_blocks.N double_blocks.N   DiT
LAYER = re.compile(r"(?:^|\.)(?:(?:[A-Za-z]+_)*(?:layers?|blocks?)|h|resblocks)\.(\d+)(?=\.)")
# What stands behind the stack: its output feeds these. A file's order of tensors says nothing about it.
BEHIND = re.compile(
    r"(?:^|(?<!embeddings)\.)(?:norm|final_layer_?norm|layernorm|ln_f|pooler|lm_head|embed_out|cls|classifier|score)\."
)

# Parts of a name -> where in the config that tower is described; the first that is there.
TOWERS: tuple[tuple[re.Pattern[str], tuple[str, ...]], ...] = (
    (re.compile(r"(?:^|[._])(?:vision|visual|image)"), ("vision_config", "vision_cfg")),
    (re.compile(r"(?:^|[._])(?:audio|speech)"), ("audio_config",)),
    (re.compile(r"(?:^|\.)(?:text_model|language_model|llm)\."), ("text_config", "llm_config", "language_config")),
    (re.compile(r"(?:^|\.)encoder\."), ("encoder",)),
    (re.compile(r"(?:^|\.)decoder\."), ("decoder",)),
)
# Configs that hold the language model's settings when the top level does not.
LANGUAGE = ("text_config", "llm_config", "language_config", "decoder")
# Keys that count layers, by the end of the stack's name; the keys of an earlier row go first.
COUNTS: tuple[tuple[re.Pattern[str], tuple[str, ...]], ...] = (
    (re.compile(r"(?:^|\.)decoder\."), ("decoder_layers", "num_decoder_layers")),
    (re.compile(r"(?:^|\.)encoder\.(?!layer$)"), ("encoder_layers", "num_encoder_layers")),
    (re.compile(r"(?:^|\.)single_(?:transformer_)?blocks$"), ("num_single_layers", "depth_single_blocks")),
    (re.compile(r"(?:^|\.)(?:down|up|mid)_blocks$"), ()),  # a UNet lists its blocks, it does not count them
)
LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "depth", "layers")
PER_LAYER = ("layer_types", "attention_layers")  # lists with a value for each layer

# Tensors with a row for each token. The first are sure by their names; the others only when they have as many rows as
# the config has tokens.
VOCABULARY = re.compile(
    r"(?:^|\.)(?:embed_tokens|wte|word_embeddings|tok_embeddings|embed_in|token_embedding|shared|lm_head|embed_out"
    r"|lm_head\.(?:decoder|linear)|cls\.predictions\.decoder|cls\.predictions|generator_lm_head|vocab_projector"
    r"|final_logits_bias)(?:\.(?:weight|bias))?$"
)
VOCABULARY_SIZES = ("vocab_size", "padded_vocab_size", "n_vocab")
# Sizes that a tensor's first dimension may equal by chance.
_OTHER_SIZES = (
    *("hidden_size", "n_embd", "d_model", "intermediate_size", "d_ff", "ffn_dim", "n_inner", "max_position_embeddings"),
    *("n_positions", "type_vocab_size", "num_labels", "embedding_size"),
)


def layer_of(name: str, config: Config | None = None) -> tuple[str, int] | None:
    """The stack a tensor belongs to and the number of its layer there, None outside layers.

    Args:
        name: the tensor's.
        config: not needed by any architecture in the tables so far; a tensor's name says it all.

    >>> layer_of("model.layers.3.mlp.experts.7.w1.weight")
    ('model.layers', 3)
    >>> layer_of("decoder.block.2.layer.1.EncDecAttention.q.weight"), layer_of("model.norm.weight")
    (('decoder.block', 2), None)
    """
    match = LAYER.search(name)
    return None if match is None else (name[: match.start(1) - 1], int(match.group(1)))


def stacks(names: Iterable[str]) -> dict[str, int]:
    """Every stack of layers, with how many it has, in the order of the names.

    >>> stacks(["h.0.a", "h.1.a", "ln_f.weight"])
    {'h': 2}
    """
    found: dict[str, int] = {}
    for name in names:
        spot = layer_of(name)
        if spot is not None:
            found[spot[0]] = max(found.get(spot[0], 0), spot[1] + 1)
    return found


def main_stacks(names: Iterable[str]) -> dict[str, int]:
    """The stacks of the language model where there are other towers, else all of them.

    >>> main_stacks(["language_model.model.layers.0.a", "vision_tower.vision_model.encoder.layers.0.a"])
    {'language_model.model.layers': 1}
    """
    found = stacks(names)
    others = {s for s in found if any(pattern.search(s) for pattern, _ in TOWERS[:2])}
    return {s: n for s, n in found.items() if s not in others} or found


def layer_counts(stack: str, config: Config) -> tuple[Path, ...]:
    """Where the config counts the layers of a stack: every key that is there, the deciding one first.

    >>> layer_counts("language_model.model.layers", {"text_config": {"num_hidden_layers": 2}})
    (('text_config', 'num_hidden_layers'),)
    >>> layer_counts("decoder.block", {"num_layers": 6, "num_decoder_layers": 4})
    (('num_decoder_layers',),)
    """
    dotted = stack + "."
    for pattern, keys in TOWERS:
        for key in keys:
            nested = config.get(key)
            if pattern.search(dotted) and isinstance(nested, Mapping):
                return tuple((key, *path) for path in layer_counts("", nested))
    for pattern, keys in COUNTS:
        if pattern.search(stack):
            own = [(k,) for k in keys if _is_size(config.get(k))]
            if own or not keys:
                # BART says a second time, as num_hidden_layers, how many the encoder has.
                more = [] if "decoder" in stack else [(k,) for k in LAYER_COUNTS[:1] if own and _is_size(config.get(k))]
                return (*own, *more)
    here = tuple((k,) for k in LAYER_COUNTS if _is_size(config.get(k)))
    if here:
        return here
    inner = next((k for k in LANGUAGE if isinstance(config.get(k), Mapping)), None)
    return () if inner is None else tuple((inner, *path) for path in layer_counts("", config[inner]))


def vocabulary_sizes(config: Config) -> tuple[Path, ...]:
    """Where the config says how many rows the vocabulary has.

    >>> vocabulary_sizes({"vocab_size": 8, "text_config": {"vocab_size": 8}})
    (('vocab_size',), ('text_config', 'vocab_size'))
    """
    here = [(k,) for k in VOCABULARY_SIZES if _is_size(config.get(k))]
    inner = [
        (tower, k)
        for tower in LANGUAGE
        if isinstance(config.get(tower), Mapping)
        for k in VOCABULARY_SIZES
        if _is_size(config[tower].get(k))
    ]
    return (*here, *inner)


def vocabulary_size(config: Config) -> int | None:
    """How many rows the config says the vocabulary has, None where it does not say.

    >>> vocabulary_size({"text_config": {"vocab_size": 8}})
    8
    """
    paths = vocabulary_sizes(config)
    return None if not paths else int(at(config, paths[0]))


def vocabulary_axis(name: str, spec: TensorSpec, config: Config) -> int | None:
    """Which axis of a tensor has an entry for each token, None where none has.

    Known names have it by themselves. Any other tensor outside layers has it when its first axis is as long as the
    config's vocabulary, and that is no other size of the config.

    >>> vocabulary_axis("model.embed_tokens.weight", TensorSpec("F32", (8, 4)), {})
    0
    >>> vocabulary_axis("emb.weight", TensorSpec("F32", (8, 4)), {"vocab_size": 8})
    0
    >>> vocabulary_axis("emb.weight", TensorSpec("F32", (8, 4)), {"vocab_size": 8, "hidden_size": 8})
    """
    if not spec.shape or LAYER.search(name) or any(p.search(name) for p, _ in TOWERS[:2]):
        return None
    size = vocabulary_size(config)
    if VOCABULARY.search(name):
        # BART keeps its bias as one row with a column for each token.
        return 1 if len(spec.shape) == 2 and spec.shape[0] == 1 and size != 1 else 0
    sizes = [config, *(config[k] for k in LANGUAGE if isinstance(config.get(k), Mapping))]
    chance = any(part.get(key) == size for part in sizes for key in _OTHER_SIZES)
    return 0 if size is not None and spec.shape[0] == size and not chance else None


def has_head(names: Iterable[str]) -> bool:
    """Whether a language-model head stands among the names (and not only an embedding that it may be tied to).

    >>> has_head(["wte.weight"]), has_head(["wte.weight", "lm_head.weight"])
    (False, True)
    """
    return any(HEAD.search(name) for name in names)


HEAD = re.compile(
    r"(?:^|\.)(?:lm_head(?:\.decoder|\.linear)?|embed_out|cls\.predictions\.decoder|output_layer)\.weight$"
)


def at(config: Config, path: Path) -> Any:
    """The value at a path of keys, None where there is none.

    >>> at({"a": {"b": 1}}, ("a", "b")), at({}, ("a", "b"))
    (1, None)
    """
    value: Any = config
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def changed(config: Config, values: Mapping[Path, Any]) -> dict[str, Any]:
    """A copy of the config with other values at some paths; order and all else are kept.

    >>> changed({"a": {"b": 1, "c": 2}}, {("a", "b"): 3})
    {'a': {'b': 3, 'c': 2}}
    """
    new = dict(config)
    for path, value in values.items():
        if len(path) == 1:
            new[path[0]] = value
        else:
            inner = new.get(path[0])
            new[path[0]] = changed(inner if isinstance(inner, Mapping) else {}, {path[1:]: value})
    return new


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
