"""Small models with tokenizers of their own, and what joining them must give, one token at a time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from cofuse.checkpoint import Checkpoint, Memory
from cofuse.fuse.tokenizer import read_tokenizer

WORDS = {
    "a": ["the cat sat on the mat and the dog ran", "hello world the end of the story"],
    "b": ["le chat et le chien dans la maison", "bonjour le monde la fin de la histoire"],
    "c": ["der hund und die katze im haus", "hallo welt das ende der geschichte"],
}
ADDED = {"a": (), "b": ("<|im_start|>", "<|im_end|>"), "c": ("<|im_end|>", "<pad>")}


def trained(which: str, kind: str = "bpe") -> Tokenizer:
    """A tokenizer of one of the three vocabularies; made by hand, for training breaks ties by chance."""
    special = ["<s>", "</s>", "[UNK]"]
    words = list(dict.fromkeys(" ".join(WORDS[which]).split()))
    letters = sorted({c for sentences in WORDS.values() for s in sentences for c in s} - {" "})
    tokenizer: Any
    if kind == "bpe":
        pieces, merges = [*special, "Ġ", *letters], []
        for word in words:
            for end in range(1, len(word)):
                if word[: end + 1] not in pieces:
                    merges.append((word[:end], word[end]))
                    pieces.append(word[: end + 1])
            merges.append(("Ġ", word))
            pieces.append(f"Ġ{word}")
        tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, merges))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
    elif kind == "wordpiece":
        pieces = list(dict.fromkeys([*special, *letters, *(f"##{c}" for c in letters), *words]))
        tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.Lowercase()
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    else:
        scored = [(t, -9.0) for t in special] + [(c, -8.0) for c in ["▁", *letters]] + [(f"▁{w}", -4.0) for w in words]
        tokenizer = Tokenizer(models.Unigram(scored, unk_id=2))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in (*special, *ADDED[which])])
    found: Tokenizer = tokenizer
    return found


def model(
    which: str,
    *,
    kind: str = "bpe",
    spare: int = 0,
    files: Mapping[str, bytes] | None = None,
    dtype: torch.dtype = torch.float32,
    tied: bool = False,
) -> Memory:
    """A model of a few tensors; `spare` rows pad its vocabulary."""
    tokenizer = trained(which, kind)
    rows = tokenizer.get_vocab_size() + spare
    generator = torch.Generator().manual_seed(ord(which))
    embedding = torch.randn(rows, 4, generator=generator).to(dtype)
    head = embedding if tied else torch.randn(rows, 4, generator=generator).to(dtype)
    config = {"vocab_size": rows, "hidden_size": 4, "eos_token_id": tokenizer.token_to_id("</s>")}
    return Memory(
        {"model.embed_tokens.weight": embedding, "model.norm.weight": torch.ones(4), "lm_head.weight": head},
        files={
            "config.json": json.dumps(config).encode(),
            "tokenizer.json": tokenizer.to_str().encode(),
            "tokenizer_config.json": b'{"eos_token": "</s>"}',
            **(files or {}),
        },
        where=which,
    )


def token_ids(checkpoint: Checkpoint) -> dict[str, int]:
    """Its tokens, by the tokenizers library itself."""
    return Tokenizer.from_str(checkpoint.files["tokenizer.json"].decode()).get_vocab(with_added_tokens=True)


def rows_by_token(checkpoint: Checkpoint, name: str) -> dict[str, torch.Tensor]:
    held = checkpoint.read(name).float()
    found = read_tokenizer(checkpoint)
    assert found is not None
    return {token: held[i] for token, i in found.ids.items() if i < len(held)}


def joined_rows(
    models: Mapping[str, Checkpoint], tokens: list[str], base: str | None, name: str
) -> dict[str, dict[str, torch.Tensor]]:
    """Slow and obviously right: for each model, the row of each token."""
    own = {address: rows_by_token(m, name) for address, m in models.items()}
    out: dict[str, dict[str, torch.Tensor]] = {address: {} for address in models}
    for token in tokens:
        have = [address for address in models if token in own[address]]
        if not have:
            default = torch.zeros(4)
        elif len(have) == 1:
            default = own[have[0]][token]
        elif base is not None and base in have:
            default = own[base][token]
        else:
            default = torch.stack([own[address][token] for address in have]).double().mean(0).float()
        for address in models:
            out[address][token] = own[address].get(token, default)
    return out
