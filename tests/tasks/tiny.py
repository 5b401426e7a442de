"""Tiny models and tasks that a test can train in a second."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

from cofuse.checkpoint import Memory
from cofuse.tasks import Examples, Task

WORDS = ["good", "bad", "so", "very", "film", "book", "##s", "the", "a", "is", "not", "near", "far", "here", "there"]
BERT = {
    "model_type": "bert",
    "vocab_size": 24,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 40,
}
VIT = {
    "model_type": "vit",
    "image_size": 8,
    "patch_size": 4,
    "num_channels": 1,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}


@cache
def tokenizer_files(*, types: bool = False) -> dict[str, bytes]:
    """A WordPiece tokenizer as transformers saves it; with token types for BERT."""
    vocabulary = {w: i for i, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    inputs = ["input_ids", *(["token_type_ids"] if types else []), "attention_mask"]
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    with TemporaryDirectory() as folder:
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_input_names=inputs, **special).save_pretrained(folder)
        return {p.name: p.read_bytes() for p in Path(folder).iterdir() if p.name != "config.json"}


def body_of(config: dict[str, Any], seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> Memory:
    """A random body of a transformers configuration, with a tokenizer beside it."""
    settings = {**config, **changes}
    kind = settings.pop("model_type")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = AutoModel.from_config(AutoConfig.for_model(kind, **settings))
    files = {"config.json": json.dumps({**config, **changes}).encode(), **tokenizer_files(types=kind == "bert")}
    # Clones: a state dict's tensors may share storage by chance, and ties are then lost or made up.
    state = {
        n: t.detach().to(dtype if t.is_floating_point() else t.dtype).clone() for n, t in module.state_dict().items()
    }
    tied = {k for k in state if k.endswith("embed_tokens.weight") and "shared.weight" in state}
    return Memory({n: t for n, t in state.items() if n not in tied}, files=files, where=f"tiny {kind}")


def bert(seed: int = 0, **changes: Any) -> Memory:
    return body_of(BERT, seed, **changes)


def vit(seed: int = 0, **changes: Any) -> Memory:
    return body_of(VIT, seed, **changes)


def write_task(folder: Path, rows: dict[str, dict[str, list[Any]]], said: dict[str, Any]) -> Path:
    """A task folder in the format of docs/formats/task.md."""
    folder.mkdir(parents=True)
    for split, columns in rows.items():
        pq.write_table(pa.table(columns), folder / f"{split}.parquet")
    (folder / "task.json").write_text(json.dumps(said), encoding="utf-8")
    return folder


def opinions(count: int, seed: int) -> dict[str, list[Any]]:
    """Texts of different lengths; the label says whether "good" is among their words."""
    random = np.random.default_rng(seed)
    neutral = [w for w in WORDS if w not in ("good", "bad", "##s")]
    labels = random.permutation(np.arange(count) % 2)
    texts = []
    for label in labels:
        words = list(random.choice(neutral, size=random.integers(1, 9)))
        words.insert(int(random.integers(len(words) + 1)), "good" if label else "bad")
        texts.append(" ".join(words))
    return {"text": texts, "label": [int(x) for x in labels]}


def opinion_task(folder: Path, sizes: Sequence[int] = (64, 32, 48)) -> Task:
    from cofuse.tasks import open_task

    splits = zip(("train", "validation", "test"), sizes, strict=True)
    rows = {split: opinions(size, i) for i, (split, size) in enumerate(splits)}
    return open_task(
        str(write_task(folder, rows, {"name": "opinions", "labels": ["bad", "good"], "kind": "sentiment"}))
    )


def even() -> Task:
    """Even digits from odd, 0 to 5."""
    groups = [[1, 3, 5], [0, 2, 4]]
    return Task.model_validate(
        {"name": "even", "kind": "image_classification", "data": {"source": "digits", "groups": groups}}
    )


def text_examples(texts: list[str], labels: Sequence[float], pairs: list[str] | None = None) -> Examples:
    inputs = {"text": texts} if pairs is None else {"text": texts, "text_pair": pairs}
    return Examples(inputs, np.asarray(labels))
