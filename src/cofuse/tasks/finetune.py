"""Finetuning a body on a task with the transformers Trainer; the head is thrown away after it was used."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, model_validator
from torch import nn

from ..checkpoint import Checkpoint
from ..document import Document
from ..errors import TaskError
from ..patch.masks import Mask
from ..progress import SILENT, Progress
from .examples import Examples
from .kinds import Kind
from .masked import Chosen, chosen
from .model import Head, Pooling, Precision, body_width, forward_all, load_body, pooled
from .peft import Adapted, Adapting
from .task import Task
from .training import Collator, Rows, train


class Finetuning(Document):
    """How to finetune. Lengths of training are in steps or in epochs, whichever is given."""

    learning_rate: float = Field(5e-5, gt=0)
    head_learning_rate: float | None = Field(None, gt=0)  # as the body's when not given
    batch_size: int = Field(32, gt=0)
    steps: int | None = Field(None, gt=0)
    epochs: float | None = Field(None, gt=0)
    warmup: float = Field(0.06, ge=0, lt=1)  # share of the steps
    schedule: Literal["linear", "constant", "cosine"] = "linear"
    weight_decay: float = Field(0.01, ge=0)
    dropout: float | None = Field(None, ge=0, lt=1)  # in the body and before the head; as in its config when not given
    freeze: tuple[str, ...] = ()  # glob patterns of the body's parameters that stay as they are: "embeddings.*"
    max_length: int = Field(128, gt=1)  # tokens
    pooling: Pooling = "mean"
    head: Literal["random", "probe"] = "random"  # what the head starts from; `probe`: fitted to the frozen body first
    precision: Precision = "auto"
    patience: int | None = Field(None, gt=0)  # stop after so many evaluations without gain; keep the best
    evaluate_every: int | None = Field(None, gt=0)  # steps; an epoch when not given
    min_gain: float = Field(0.1, ge=0)  # points of the task's metric that count as a gain

    @model_validator(mode="after")
    def _one_length(self) -> Finetuning:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError('either "steps" or "epochs"')
        return self

    def total_steps(self, examples: int) -> int:
        """Optimizer steps on so many examples.

        >>> Finetuning(epochs=2, batch_size=32).total_steps(100)
        8
        """
        if self.steps is not None:
            return self.steps
        return max(1, math.ceil(cast("float", self.epochs) * math.ceil(examples / self.batch_size)))


class TaskModel(nn.Module):
    """A body with one head, as the Trainer wants it."""

    # Else the Trainer takes `**batch` for loss arguments and hands the body one that it may not know.
    accepts_loss_kwargs = False
    # What a `PreTrainedModel` has; the Trainer looks when a checkpoint lacks names, as it does where names are tied.
    _keys_to_ignore_on_save = None

    def __init__(self, body: nn.Module, head: Head, kind: Kind, pooling: Pooling) -> None:
        super().__init__()
        self.body = body
        self.head = head
        self.kind = kind
        self.pooling: Pooling = pooling
        self.register_state_dict_post_hook(_tied_once)  # type: ignore[no-untyped-call]

    def forward(self, labels: torch.Tensor | None = None, **batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """A batch -> loss (with labels) and logits [batch, outputs]."""
        logits = self.head(pooled(self.body, batch, self.pooling))
        return {"logits": logits} if labels is None else {"loss": self.kind.loss(logits, labels), "logits": logits}


def _tied_once(module: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any]) -> None:
    """Keep each tensor under one name: the Trainer's checkpoints take no tied ones (an encoder-decoder's embeddings)."""
    seen: set[tuple[int, torch.Size]] = set()
    for name in [n for n in state if n.startswith(prefix) and state[n].numel()]:
        key = (state[name].data_ptr(), state[name].shape)
        if key in seen:
            del state[name]
        seen.add(key)


@dataclass(frozen=True, slots=True)
class Tuned:
    """A finetuned model, good until the next one is loaded; and what its training was."""

    model: TaskModel
    task: Task
    settings: Finetuning
    like: Checkpoint
    steps: int
    validation: float | None  # best score on the validation split, where it was asked for
    chosen: Chosen | None = None  # what a mask let train
    adapted: Adapted | None = None  # the adapter that trained instead of the body

    def predict(self, examples: Examples) -> npt.NDArray[Any]:
        """Predictions [n] for examples."""
        encoded = self.task.what.encode(examples, self.like, self.settings.max_length)
        self.model.eval()
        logits = forward_all(
            lambda batch: self.model(**batch)["logits"], self.task.what, encoded, self.settings.precision
        )
        return self.task.what.predict(logits)


def finetune(
    base: Checkpoint,
    task: Task,
    train_on: Examples,
    settings: Finetuning,
    *,
    seed: int,
    validation: Examples | None = None,
    mask: Mask | None = None,
    adapt: Adapting | None = None,
    folder: Path | None = None,
    progress: Progress = SILENT,
) -> Tuned:
    """Finetune body and head; of the body all, what a mask chooses, or an adapter on it.

    Args:
        base: the body to start from.
        task: what the examples are of.
        train_on: examples.
        settings: how.
        seed: of the head, of dropout and of the order of examples.
        validation: needed when `settings.patience` is given; else unused.
        mask: which of the body's values train, but for what `settings.freeze` names; the optimizer keeps state for no
            others.
        adapt: `Lora` or `Ia3` to train instead of the body's values.
        folder: where the training is kept now and then, and taken up again after an interruption.
        progress: told of every step.

    Raises:
        TaskError: the model does not fit the task, patience without validation, a mask that chooses nothing, a mask
            and an adapter, or the loss is not finite.
    """
    if mask is not None and adapt is not None:
        raise TaskError("a mask or an adapter, not both", where=task.name)
    body = load_body(base, dropout=settings.dropout)
    adapted = None
    if adapt is not None:
        adapted = Adapted(copy.deepcopy(body), base, adapt, seed)  # the module that is kept stays as it is
        body = adapted.body
    encoded = task.what.encode(train_on, base, settings.max_length)
    head = Head(body_width(body), task.outputs, settings.dropout or 0.0, seed)
    if settings.head == "probe":
        from .probe import fit_head

        fit_head(head, body, task, encoded, settings.pooling, settings.precision)
    trained = None if mask is None else chosen(body, base, mask)
    if trained is not None:
        for parameter in body.parameters():
            parameter.requires_grad_(parameter in trained)  # nor does what transformers adds to the base
    model = TaskModel(body, head, task.what, settings.pooling)
    steps = settings.total_steps(len(train_on))
    if settings.patience is not None and validation is None:
        raise TaskError("early stopping needs validation examples", where=task.name)
    checked = None
    if settings.patience is not None and validation is not None:
        checked = Rows(task.what.encode(validation, base, settings.max_length))

    def score(prediction: Any) -> dict[str, float]:
        logits = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
        return {"score": task.score(task.what.predict(np.asarray(logits)), prediction.label_ids)}

    taken, best = train(
        model,
        Rows(encoded),
        Collator(task.what),
        settings,
        steps=steps,
        seed=seed,
        batch_size=settings.batch_size,
        validation=checked,
        score=score,
        evaluate_every=settings.evaluate_every or max(1, math.ceil(len(train_on) / settings.batch_size)),
        chosen=trained,
        folder=folder,
        progress=progress,
    )
    moved = None if trained is None else {p: kept for p, kept in trained.items() if p.requires_grad}
    return Tuned(model, task, settings, base, taken, best, moved, adapted)
