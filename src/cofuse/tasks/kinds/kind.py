"""What a kind of task is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

    from ...checkpoint import Checkpoint
    from ..examples import Examples


@dataclass(frozen=True, slots=True)
class Encoded:
    """Examples as a model takes them: one mapping an example, not yet padded.

    Attributes:
        rows: the inputs of each example: lists of token ids, or arrays.
        labels: as in `Examples`.
        lengths: what sorting by cost goes by; equal for images.
    """

    rows: Sequence[Mapping[str, Any]]
    labels: npt.NDArray[Any]
    lengths: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, rows: npt.NDArray[np.int64]) -> Encoded:
        """Those examples, in that order."""
        return Encoded([self.rows[i] for i in rows], self.labels[rows], self.lengths[rows])


@dataclass(frozen=True, slots=True)
class Kind:
    """A row of the table.

    Attributes:
        columns: input columns a source must have; those ending in `?` may be absent.
        encode: examples, the model whose tokenizer or size counts, and the longest sequence -> model inputs.
        collate: rows -> one batch of tensors.
        loss: logits [batch, outputs], labels [batch] -> scalar.
        predict: logits [n, outputs] -> predictions [n].
        metric: the score used where a task names none.
        continuous: whether labels are values rather than classes.
    """

    columns: tuple[str, ...]
    encode: Callable[[Examples, Checkpoint, int], Encoded]
    collate: Callable[[Sequence[Mapping[str, Any]]], dict[str, torch.Tensor]]
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    predict: Callable[[npt.NDArray[np.float32]], npt.NDArray[Any]]
    metric: str
    continuous: bool = False


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean over the batch of -log softmax(logits)[label], in nats."""
    from torch.nn.functional import cross_entropy as loss

    return loss(logits.float(), labels)


def most_likely(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """The class with the largest logit."""
    best: npt.NDArray[np.int64] = logits.argmax(axis=1)
    return best
