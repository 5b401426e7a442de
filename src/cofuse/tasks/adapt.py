"""Adapting a base to a domain: masked language modelling of its body on unlabelled texts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from pydantic import Field
from torch import nn

from ..checkpoint import Checkpoint, body
from ..document import Document
from ..errors import TaskError
from ..progress import SILENT, Progress
from .examples import Examples
from .finetune import Finetuning
from .kinds.text import collate, encode, tokenizer_of
from .model import Precision, body_checkpoint, homes_of, seeded
from .training import Rows, train

_IGNORED = -100  # labels of positions that no loss is taken of, as in torch
# Of the chosen tokens, how many become the mask; half of the others become any token, half stay.
_MASKED = 0.8


class MaskedLanguage(Document):
    """How to adapt."""

    steps: int = Field(gt=0)
    batch_size: int = Field(32, gt=0)
    learning_rate: float = Field(5e-5, gt=0)
    warmup: float = Field(0.06, ge=0, lt=1)  # share of the steps
    weight_decay: float = Field(0.01, ge=0)
    max_length: int = Field(128, gt=1)  # tokens
    share: float = Field(0.15, gt=0, lt=1)  # of the tokens that are to be predicted
    precision: Precision = "auto"


def adapt(
    base: Checkpoint, texts: Sequence[str], settings: MaskedLanguage, *, seed: int, progress: Progress = SILENT
) -> Checkpoint:
    """Train a body further on unlabelled texts.

        loss = mean over chosen tokens of -log p(token | the text with the chosen tokens hidden)

    Args:
        base: the checkpoint; of its head what it has is used, and the rest is drawn. A head whose output matrix is tied to
            the embeddings, as most are, knows the words already.
        texts: unlabelled; each is cut to the longest length.
        settings: how.
        seed: of the order, of what is hidden, of dropout and of what is drawn of the head.
        progress: told of every step.

    Returns:
        The body, under the base's names and with its files; what takes no part in it (a pooler) is the base's.

    Raises:
        TaskError: there are no texts, the tokenizer has no mask, or transformers has no such head for the model.

    Source: BERT, arXiv 1810.04805, sec. 3.1 (80 % mask, 10 % any token, 10 % as they are); Don't stop pretraining,
    arXiv 2004.10964 (domain-adaptive pretraining).
    """
    if not texts:
        raise TaskError("no texts to adapt to")
    tokenizer = tokenizer_of(base)
    if tokenizer.mask_token_id is None:
        raise TaskError("the tokenizer has no token to hide others with", where=base.where, got="no mask_token")
    model = _Reader(masked_model(base, seed))
    encoded = encode(Examples({"text": list(texts)}, np.zeros(len(texts), np.int64)), base, settings.max_length)
    hide = Hide(tokenizer.mask_token_id, tuple(tokenizer.all_special_ids), len(tokenizer), settings.share, seed)
    finetuning = Finetuning(
        learning_rate=settings.learning_rate,
        steps=settings.steps,
        batch_size=settings.batch_size,
        warmup=settings.warmup,
        weight_decay=settings.weight_decay,
        precision=settings.precision,
    )
    train(
        model,
        Rows(encoded),
        hide,
        finetuning,
        steps=settings.steps,
        seed=seed,
        batch_size=settings.batch_size,
        progress=progress,
    )
    return body(body_checkpoint(model.body, base), like=base)


class Hide:
    """Items of `Rows` -> a batch with some tokens hidden, and those tokens for labels."""

    def __init__(self, mask: int, special: tuple[int, ...], vocabulary: int, share: float, seed: int) -> None:
        self._mask, self._special, self._vocabulary, self._share = mask, torch.tensor(special), vocabulary, share
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, items: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        batch = collate([item["row"] for item in items])
        ids = batch["input_ids"]  # [batch, time]
        free = batch["attention_mask"].bool() & ~torch.isin(ids, self._special)
        chosen = free & (self._draw(ids) < self._share)
        if not chosen.any() and free.any():
            chosen[tuple(free.nonzero()[0])] = True  # a batch of few tokens has something to predict as well
        labels = torch.where(chosen, ids, _IGNORED)
        fate = self._draw(ids)
        anything = torch.randint(self._vocabulary, ids.shape, generator=self._generator)
        other = torch.where(fate < (1 + _MASKED) / 2, anything, ids)
        batch["input_ids"] = torch.where(chosen, torch.where(fate < _MASKED, self._mask, other), ids)
        return {**batch, "labels": labels}

    def _draw(self, like: torch.Tensor) -> torch.Tensor:
        return torch.rand(like.shape, generator=self._generator)


class _Reader(nn.Module):
    """A masked language model as the Trainer wants it."""

    accepts_loss_kwargs = False
    _keys_to_ignore_on_save = None

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.body = model

    def forward(self, labels: torch.Tensor, **batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """A batch -> its loss."""
        return {"loss": self.body(**batch, labels=labels).loss}


def masked_model(base: Checkpoint, seed: int) -> nn.Module:
    """The masked language model of a checkpoint's config, in float32; what the checkpoint lacks of it is drawn.

    Raises:
        TaskError: there is no config, transformers has no such head for the model, or the tensors do not fit it.
    """
    from transformers import AutoConfig, AutoModelForMaskedLM

    raw = base.files.get("config.json")
    if raw is None:
        raise TaskError("no config.json, so no architecture", where=base.where)
    config = json.loads(raw)
    said = {k: v for k, v in config.items() if k not in ("model_type", "transformers_version", "architectures")}
    try:
        with seeded(seed):
            known = AutoConfig.for_model(config.get("model_type"), **said)
            model = cast("nn.Module", AutoModelForMaskedLM.from_config(known).float())
    except (ValueError, KeyError, TypeError) as error:
        raise TaskError(
            "transformers has no masked language model of this kind",
            where=base.where,
            got=(str(error).splitlines() or ["?"])[0][:200],
        ) from None
    own = dict(model.state_dict(keep_vars=True))
    with torch.no_grad():
        for name, there in homes_of(model, base).items():
            own[name].copy_(base.read(there))
    return model
