"""Protocols of models that are measured as they are, with a head of their own: zero-shot, and perplexity."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, model_validator

from ...checkpoint import Checkpoint
from ...document import PlacedError
from ...errors import TaskError
from ...tasks import Examples, Task
from ..outcomes import Outcomes
from ..own_head import label_order
from ..subject import Subject, open_subject
from .protocols import PROTOCOLS, Given, Measured, Protocol, Runner, outcomes_of


class WholeProtocol(Protocol):
    """What needs no training: there is nothing to draw."""

    max_length: int = Field(128, gt=1)  # tokens

    @model_validator(mode="after")
    def _nothing_drawn(self) -> WholeProtocol:
        for name in ("examples", "draws"):
            if name in self.model_fields_set:
                raise PlacedError((name,), "nothing: this protocol trains on no examples", getattr(self, name))
        return self


class ZeroshotProtocol(WholeProtocol):
    """A model with its own head, on the test split."""


class PerplexityProtocol(WholeProtocol):
    """How well a causal language model predicts the texts of the test split."""

    max_length: int = Field(512, gt=1)
    unit: Literal["nats", "bits"] = "nats"
    per: Literal["token", "word", "byte"] = "token"  # words: what stands between spaces; bytes: of UTF-8

    @property
    def metric(self) -> str:
        """What a score is: higher is better, so the loss has a minus."""
        return f"minus_{self.unit}_per_{self.per}"


def run_zeroshot(model: Checkpoint, task: Task, settings: Any, seed: int, given: Given) -> Measured:
    """Predict with the model's own head, its labels brought into the task's order.

    Raises:
        TaskError: the model has no such head, or its labels are not the task's.
    """
    subject = open_subject(model, task, head="own", max_length=settings.max_length)
    if subject.outputs == "tokens":
        raise TaskError(
            "zero-shot needs a model with a classification or regression head",
            where=f"{model.where}, task {task.name}",
            hint="language models: the perplexity protocol, or --harness for the tasks of lm-evaluation-harness",
        )
    test = task.examples("test").first(settings.test)
    logits = _logits(subject, test)
    if not task.what.continuous:
        logits = logits[:, label_order(model.config, task)]
    found = outcomes_of("zeroshot", task, seed, task.what.predict(logits), test, logits)
    return Measured((found.value,), len(test), (found,))


def _logits(subject: Subject, examples: Examples) -> npt.NDArray[np.float32]:
    rows, found = [], []
    with torch.inference_mode():
        for batch in subject.batches(examples, 64):
            rows.append(batch.rows)
            found.append(subject.logits(batch).float().cpu().numpy())
    return np.concatenate(found)[np.argsort(np.concatenate(rows))]


def run_perplexity(model: Checkpoint, task: Task, settings: Any, seed: int, given: Given) -> Measured:
    """Minus the mean loss of the test split's texts: exp of the loss in nats per token is the perplexity.

    The loss is summed over all texts and divided by their units; a text's first token is given, not predicted. Each
    text's score is its share, so that the mean of the scores is the loss of all.

    Raises:
        TaskError: not a causal language model, or words and bytes are counted where texts were cut.
    """
    subject = open_subject(model, task, head="own", max_length=settings.max_length)
    if subject.outputs != "tokens" or model.config.get("is_encoder_decoder"):
        raise TaskError("perplexity needs a causal language model", where=model.where)
    test = task.examples("test").first(settings.test)
    n = len(test)
    nats, tokens = np.zeros(n), np.zeros(n, dtype=np.int64)
    with torch.inference_mode():
        for batch in subject.batches(test, 8):
            assert batch.mask is not None  # tokens have positions
            logits = subject.logits(batch).float()  # [batch, time, vocabulary]
            losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch.labels, reduction="none")
            nats[batch.rows] = (losses.double() * batch.mask).sum(1).numpy()
            tokens[batch.rows] = batch.mask.sum(1).numpy()
    units = _units(test, tokens, settings, task.name)
    if not units:
        raise TaskError("no token is predicted: every text is one token long", where=task.name)
    scale = math.log(2) if settings.unit == "bits" else 1.0
    scores = -nats / scale * (n / units)
    found = Outcomes(
        model="",
        task=task.name,
        task_id=task.id,
        protocol="perplexity",
        metric=settings.metric,
        seed=seed,
        examples=np.arange(n, dtype=np.int64),
        scores=scores,
    )
    return Measured((found.value,), n, (found,))


def _units(test: Examples, tokens: npt.NDArray[np.int64], settings: PerplexityProtocol, where: str) -> int:
    if settings.per == "token":
        return int(tokens.sum())
    if int(tokens.max()) + 1 >= settings.max_length:
        raise TaskError(
            f"texts were cut, so loss per {settings.per} would count what was not read",
            where=where,
            got=f"{settings.max_length} tokens or more",
            hint="raise max_length, or measure per token",
        )
    texts = [t for name in ("text", "text_pair") for t in test.inputs.get(name, ())]
    return sum(len(t.split()) if settings.per == "word" else len(t.encode()) for t in texts)


# All protocols that a suite may name.
ALL: Mapping[str, tuple[type[Protocol], Runner]] = {
    **PROTOCOLS,
    "zeroshot": (ZeroshotProtocol, run_zeroshot),
    "perplexity": (PerplexityProtocol, run_perplexity),
}
