"""Finetuning a body on a task with the transformers Trainer; the head is thrown away after it was used."""

from __future__ import annotations

import contextlib
import gc
import logging
import math
import random
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, model_validator
from torch import nn

from ..checkpoint import Checkpoint
from ..document import Document
from ..errors import DivergedError, TaskError
from .examples import Examples
from .kinds import Encoded, Kind
from .model import Head, Pooling, Precision, body_width, forward_all, load_body, pooled, uses_bf16
from .task import Task


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
) -> Tuned:
    """Finetune body and head.

    Args:
        base: the body to start from.
        task: what the examples are of.
        train_on: examples.
        settings: how.
        seed: of the head, of dropout and of the order of examples.
        validation: needed when `settings.patience` is given; else unused.

    Raises:
        TaskError: the model does not fit the task, patience without validation, or the loss is not finite.
    """
    body = load_body(base, dropout=settings.dropout)
    encoded = task.what.encode(train_on, base, settings.max_length)
    head = Head(body_width(body), task.outputs, settings.dropout or 0.0, seed)
    if settings.head == "probe":
        from .probe import fit_head

        fit_head(head, body, task, encoded, settings)
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
    )
    return Tuned(model, task, settings, base, taken, best)


def train(
    model: nn.Module,
    batches: torch.utils.data.Dataset[Any],
    collate: Callable[[Sequence[Any]], dict[str, Any]],
    settings: Finetuning,
    *,
    steps: int,
    seed: int,
    batch_size: int,
    validation: torch.utils.data.Dataset[Any] | None = None,
    score: Callable[[Any], dict[str, float]] | None = None,
    evaluate_every: int = 1,
    shuffled: bool = True,
) -> tuple[int, float | None]:
    """Run the transformers Trainer: no logging, no files but the best checkpoint while early stopping looks for it.

    `shuffled` draws the order of examples from the seed; without it they are taken as they come.

    Returns:
        The steps taken, and the best validation score where there was one.
    """
    from transformers import EarlyStoppingCallback, PrinterCallback, Trainer, TrainingArguments

    settle_process()
    searching = validation is not None
    with tempfile.TemporaryDirectory(prefix="cofuse-trainer-") as folder, _random_state_kept():
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=batch_size,
            per_device_eval_batch_size=64,
            learning_rate=settings.learning_rate,
            lr_scheduler_type=settings.schedule,
            warmup_steps=math.ceil(settings.warmup * steps),
            weight_decay=settings.weight_decay,
            max_grad_norm=1.0,
            bf16=uses_bf16(settings.precision),
            use_cpu=not torch.cuda.is_available(),
            seed=seed,
            data_seed=seed,
            disable_tqdm=True,
            report_to=[],
            logging_strategy="no",
            log_level="error",
            eval_strategy="steps" if searching else "no",
            eval_steps=evaluate_every if searching else None,
            save_strategy="steps" if searching else "no",
            save_steps=evaluate_every,
            save_total_limit=1,
            save_only_model=True,
            load_best_model_at_end=searching,
            metric_for_best_model="score" if searching else None,
            greater_is_better=True if searching else None,
            train_sampling_strategy="random" if shuffled else "sequential",
            remove_unused_columns=False,
            label_names=["labels"],
            dataloader_pin_memory=False,
        )
        optimizer = torch.optim.AdamW(_groups(model, settings), lr=settings.learning_rate, fused=True)
        stopping = (
            EarlyStoppingCallback(settings.patience, settings.min_gain) if searching and settings.patience else None
        )
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=cast("Any", batches),
            eval_dataset=cast("Any", validation),
            data_collator=cast("Any", collate),
            compute_metrics=cast("Any", score) if searching else None,
            callbacks=[stopping] if stopping else [],
            optimizers=(optimizer, None),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        best = trainer.state.best_metric
        taken = int(trainer.state.global_step)
    model.eval()
    for name, parameter in model.named_parameters():
        # A sum is finite only where every term is; one that is not may have overflowed.
        if not math.isfinite(float(parameter.detach().sum())) and not torch.isfinite(parameter).all():
            raise DivergedError("training diverged: a weight is not finite", where=name, hint="lower the learning rate")
    return taken, None if best is None else float(best)


@contextlib.contextmanager
def _random_state_kept() -> Iterator[None]:
    """The Trainer seeds the global generators; whoever called has theirs as they were."""
    pythons, numpys = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(pythons)
        np.random.set_state(numpys)


def _groups(model: nn.Module, settings: Finetuning) -> list[dict[str, Any]]:
    """Parameters with their learning rate and decay: biases and norms do not decay, frozen ones are left out.

    Raises:
        TaskError: a pattern freezes nothing, or everything is frozen.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    unused = set(settings.freeze)
    for name, parameter in model.named_parameters():
        inside = name.split("body.", 1)[1] if "body." in name else None
        frozen = {p for p in settings.freeze if inside is not None and fnmatchcase(inside, p)}
        unused -= frozen
        parameter.requires_grad_(not frozen)
        if not frozen:
            groups.setdefault((inside is None, parameter.dim() > 1), []).append(parameter)
    if unused:
        raise TaskError(
            "a pattern freezes nothing", got=", ".join(sorted(unused)), hint="patterns match the body's names"
        )
    if not any(not head for head, _ in groups):
        raise TaskError("the whole body is frozen", got=", ".join(settings.freeze))
    return [
        {
            "params": parameters,
            "lr": (settings.head_learning_rate or settings.learning_rate) if head else settings.learning_rate,
            "weight_decay": settings.weight_decay if decays else 0.0,
        }
        for (head, decays), parameters in sorted(groups.items())
    ]


class Rows(torch.utils.data.Dataset[dict[str, Any]]):
    """Encoded examples, as a data loader wants them."""

    def __init__(self, encoded: Encoded) -> None:
        self.encoded = encoded

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"row": self.encoded.rows[i], "label": self.encoded.labels[i]}


class Collator:
    """Items of `Rows` -> a batch with its labels."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind

    def __call__(self, items: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        batch = self.kind.collate([item["row"] for item in items])
        batch["labels"] = torch.from_numpy(np.asarray([item["label"] for item in items]))
        return batch


@cache
def settle_process() -> None:
    """Once a process: quiet the libraries, and take what they loaded out of the garbage collector's rounds.

    The Trainer collects garbage whenever it starts, which takes 0.3 s with transformers imported and nothing after
    the modules are frozen.
    """
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    gc.collect()
    gc.freeze()
