"""A family of small Llamas on disk: a base, three finetunes of it, and one with another vocabulary."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from cofuse.checkpoint import Memory

LAYERS, WIDTH, INNER, HEADS = 6, 32, 48, 4
SPECIAL = ["<unk>", "<s>", "</s>"]
WORDS = [*SPECIAL, *(f"w{i}" for i in range(58))]
OTHER = [*WORDS[:43], *(f"x{i}" for i in range(9)), "<extra>"]
FAMILY = ("base", "math", "code", "prose", "german")


def tensors(words: list[str], seed: int, base: dict[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
    """A Llama's tensors; near the base's where one is given, as a finetune is."""
    generator = torch.Generator().manual_seed(seed)
    rows = len(words)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (rows, WIDTH)}
    for i in range(LAYERS):
        at = f"model.layers.{i}."
        shapes |= {f"{at}self_attn.{k}_proj.weight": (WIDTH, WIDTH) for k in "qkvo"}
        shapes |= {f"{at}mlp.{k}_proj.weight": (INNER, WIDTH) for k in ("gate", "up")}
        shapes |= {f"{at}mlp.down_proj.weight": (WIDTH, INNER)}
        shapes |= {f"{at}{k}_layernorm.weight": (WIDTH,) for k in ("input", "post_attention")}
    shapes |= {"model.norm.weight": (WIDTH,), "lm_head.weight": (rows, WIDTH)}
    made = {name: torch.randn(shape, generator=generator) * 0.05 for name, shape in shapes.items()}
    if base is not None:
        made = {n: base[n] + 0.2 * t if base[n].shape == t.shape else t for n, t in made.items()}
    return made


def files(words: list[str], dtype: str) -> dict[str, bytes]:
    """The small files: a config, and a tokenizer that knows whole words."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "vocab_size": len(words),
        "tie_word_embeddings": False,
        "torch_dtype": dtype,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | {"special": True}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": w, **flags} for i, w in enumerate(words) if w.startswith("<")],
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": {word: i for i, word in enumerate(words)}, "unk_token": "<unk>"},
    }
    own = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    texts = {"config.json": config, "tokenizer.json": tokenizer, "tokenizer_config.json": own}
    return {name: json.dumps(text).encode() for name, text in texts.items()}


def family(folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Write the family into a folder, each under its name; one of them in shards."""
    base = tensors(WORDS, 0)
    made = {"base": base, **{name: tensors(WORDS, i, base) for i, name in enumerate(FAMILY[1:4], 1)}}
    made["german"] = tensors(OTHER, 9, base)
    for name, weights in made.items():
        words = OTHER if name == "german" else WORDS
        kept = {n: t.to(dtype) for n, t in weights.items()}
        word = str(dtype).removeprefix("torch.")
        shard = 60_000 if name == "code" else None
        Memory(kept, files=files(words, word)).save(folder / name, max_shard_bytes=shard)
    return folder
