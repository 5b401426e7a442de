"""Kinds over text: one or two strings, classified or rated."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...errors import TaskError
from .kind import Encoded, Kind, cross_entropy, most_likely

if TYPE_CHECKING:
    import torch

    from ...checkpoint import Checkpoint
    from ..examples import Examples

# Batches are padded to a multiple of this many tokens, so that few different shapes occur.
PAD_MULTIPLE = 8


def encode(examples: Examples, model: Checkpoint, max_length: int) -> Encoded:
    """Token ids of each text, or pair of texts, cut to `max_length` tokens."""
    tokenizer = tokenizer_of(model)
    texts = [examples.inputs["text"]]
    if "text_pair" in examples.inputs:
        texts.append(examples.inputs["text_pair"])
    for column in texts:
        odd = next((text for text in column if not isinstance(text, str)), None)
        if odd is not None:
            raise TaskError("a text is not a string", got=repr(odd)[:80])
    batch = tokenizer(*[list(t) for t in texts], truncation=True, max_length=max_length, padding=False)
    keys = [k for k in ("input_ids", "token_type_ids", "attention_mask") if k in batch]
    rows = [{k: batch[k][i] for k in keys} | {"pad": tokenizer.pad_token_id} for i in range(len(examples))]
    lengths = np.array([len(ids) for ids in batch["input_ids"]], dtype=np.int64)
    return Encoded(rows, examples.labels, lengths)


def tokenizer_of(model: Checkpoint) -> Any:
    """The model's tokenizer, as transformers has it.

    Raises:
        TaskError: it has none, or one that cannot be loaded.
    """
    return _tokenizer(_tokenizer_files(model))


def collate(rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    """Pad to the longest row: ids with the tokenizer's pad, masks and types with 0. All [batch, time], int64."""
    import torch

    longest = max(len(row["input_ids"]) for row in rows)
    length = -(-longest // PAD_MULTIPLE) * PAD_MULTIPLE
    batch = {}
    for key in rows[0]:
        if key == "pad":
            continue
        fill = rows[0]["pad"] if key == "input_ids" else 0
        batch[key] = torch.tensor([list(row[key]) + [fill] * (length - len(row[key])) for row in rows])
    return batch


def _tokenizer_files(model: Checkpoint) -> tuple[tuple[str, bytes], ...]:
    return tuple(
        (name, model.files[name])
        for name in model.files
        if name.startswith(
            ("tokenizer", "vocab", "merges", "special_tokens", "added_tokens", "spiece", "sentencepiece")
        )
        or name == "config.json"
    )


@lru_cache(maxsize=4)
def _tokenizer(files: tuple[tuple[str, bytes], ...]) -> Any:
    from transformers import AutoTokenizer

    if not any(name != "config.json" for name, _ in files):
        raise TaskError("the model has no tokenizer", hint="put tokenizer.json beside its weights")
    with tempfile.TemporaryDirectory() as folder:
        for name, data in files:
            (Path(folder) / name).write_bytes(data)
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=True, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise TaskError("cannot load the tokenizer", got=(str(error).splitlines() or ["?"])[0]) from None
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _squared_error(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean over the batch of (output - value)^2."""
    from torch.nn.functional import mse_loss

    return mse_loss(logits.float().squeeze(-1), labels.float())


def _value(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return logits[:, 0]


CLASSIFICATION = Kind(("text",), encode, collate, cross_entropy, most_likely, "accuracy")
PAIR_CLASSIFICATION = Kind(("text", "text_pair"), encode, collate, cross_entropy, most_likely, "accuracy")
REGRESSION = Kind(("text", "text_pair?"), encode, collate, _squared_error, _value, "spearman", continuous=True)
