"""Multitask finetuning: one body, one head a task, batches of the tasks in turn. A baseline with all data in one place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ..checkpoint import Checkpoint
from .examples import Examples
from .finetune import Finetuning, TaskModel
from .kinds import Encoded
from .model import Head, body_width, load_body
from .probe import fit_head
from .task import Task
from .training import Collator, Rows, train


class _ManyHeads(nn.Module):
    accepts_loss_kwargs = False  # see TaskModel

    def __init__(self, body: nn.Module, models: Sequence[TaskModel]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)  # each holds the one body
        self.body = body

    def forward(self, task: int, **batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """One task's batch -> its loss."""
        loss: dict[str, torch.Tensor] = self.models[task](**batch)
        return loss


class _Turns(torch.utils.data.Dataset[dict[str, Any]]):
    """Batches, each of one task; every task has its turn before any has its next."""

    def __init__(self, kinds: Sequence[Collator], encoded: Sequence[Encoded], size: int, steps: int, seed: int) -> None:
        self._kinds, self._encoded = kinds, [Rows(e) for e in encoded]
        random = np.random.default_rng([seed, len(encoded)])
        self._batches: list[tuple[int, npt.NDArray[np.int64]]] = []
        left: list[npt.NDArray[np.int64]] = [np.empty(0, dtype=np.int64) for _ in encoded]
        while len(self._batches) < steps:
            for task in random.permutation(len(encoded))[: steps - len(self._batches)]:
                if len(left[task]) < size:
                    left[task] = np.concatenate([left[task], random.permutation(len(encoded[task]))])
                self._batches.append((int(task), left[task][:size]))
                left[task] = left[task][size:]

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, i: int) -> dict[str, Any]:
        task, rows = self._batches[i]
        return {"task": task, **self._kinds[task]([self._encoded[task][int(r)] for r in rows])}


def finetune_multitask(
    base: Checkpoint, tasks: Sequence[tuple[Task, Examples]], settings: Finetuning, *, seed: int
) -> nn.Module:
    """Finetune one body on all tasks at once.

    Each step takes `batch_size` examples of one task. `settings.steps` counts the steps of all tasks together.

    Returns:
        The body; good until the next one is loaded.
    """
    body = load_body(base, dropout=settings.dropout)
    width = body_width(body)
    encoded = [task.what.encode(examples, base, settings.max_length) for task, examples in tasks]
    models = [
        TaskModel(body, Head(width, task.outputs, settings.dropout or 0.0, seed + i), task.what, settings.pooling)
        for i, (task, _) in enumerate(tasks)
    ]
    if settings.head == "probe":
        for model, (task, _), part in zip(models, tasks, encoded, strict=True):
            fit_head(model.head, body, task, part, settings.pooling, settings.precision)
    steps = settings.total_steps(sum(len(e) for e in encoded))
    turns = _Turns([Collator(task.what) for task, _ in tasks], encoded, settings.batch_size, steps, seed)
    # The loader hands over one ready batch at a time.
    train(
        _ManyHeads(body, models),
        turns,
        lambda items: dict(items[0]),
        settings,
        steps=steps,
        seed=seed,
        batch_size=1,
        shuffled=False,
    )
    return body
