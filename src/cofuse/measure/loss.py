"""Loss and score of a model that is ready to be measured, on examples of its task."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from ..tasks import Examples, Task
from .own_head import label_order
from .subject import Batch, Subject

# The metric of models that predict tokens.
TOKENS = "token accuracy"
Loss = Callable[[torch.Tensor, Batch], torch.Tensor]


def loss_of(subject: Subject, task: Task) -> Loss:
    """The loss of a batch from its logits: a mean over its examples, or over its tokens that count, in nats.

    Classes and values have their kind's loss (cross-entropy, squared error); a model's own labels are brought into the
    task's order.

    Raises:
        TaskError: the labels of the model's own head are not the task's.
    """
    if subject.outputs == "tokens":
        return _of_tokens
    order = order_of(subject, task)

    def loss(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        return task.what.loss(logits if order is None else logits[:, order], batch.labels.to(logits.device))

    return loss


def order_of(subject: Subject, task: Task) -> list[int] | None:
    """The output for each of the task's labels; None where they stand in the task's order."""
    own = subject.outputs == "classes" and subject.record.get("head") == "own"
    return label_order(subject.checkpoint.config, task) if own else None


def _of_tokens(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    assert batch.mask is not None  # tokens have positions
    mask = batch.mask.to(logits.device)
    return torch.nn.functional.cross_entropy(logits[mask].float(), batch.labels.to(logits.device)[mask])


@torch.inference_mode()
def loss_and_score(subject: Subject, task: Task, examples: Examples, batch_size: int = 64) -> tuple[float, float]:
    """Mean loss in nats, and the task's score in percent, higher is better; of tokens the share that is predicted right.

    Raises:
        TaskError: there are no examples, or the labels of the model's own head are not the task's.
    """
    loss, order = loss_of(subject, task), order_of(subject, task)
    total, counted, right = 0.0, 0, 0
    rows, found = [], []
    for batch in subject.batches(examples, batch_size):
        logits = subject.logits(batch).float()
        count = len(batch) if batch.mask is None else int(batch.mask.sum())
        if not count:
            continue
        total += float(loss(logits, batch)) * count
        counted += count
        if batch.mask is not None:
            right += int(((logits.argmax(-1) == batch.labels) & batch.mask.bool()).sum())
            continue
        rows.append(batch.rows)
        found.append((logits if order is None else logits[:, order]).cpu().numpy())
    if not rows:
        return total / max(1, counted), 100.0 * right / max(1, counted)
    predicted = task.what.predict(np.concatenate(found)[np.argsort(np.concatenate(rows))])
    return total / counted, task.score(predicted, examples.labels)
