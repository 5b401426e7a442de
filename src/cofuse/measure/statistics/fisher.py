"""The diagonal of the Fisher information, exactly: the mean over examples of squared per-example gradients.

    F_j = 1/N sum_n E_{y ~ p(y | x_n)} (d log p(y | x_n) / d theta_j)^2        expected
    F_j = 1/N sum_n (d log p(y_n | x_n) / d theta_j)^2                         empirical: the data's labels; sampled: drawn

Never the square of a batch's gradient. log p is a whole example's: of a sequence, the sum over its tokens.

Source: Matena and Raffel, arXiv 2111.09832, sec. 3 (expected); Sung, Nair and Raffel, arXiv 2111.09839, eq. 5 (empirical).
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Literal

import torch

from ...checkpoint import Memory
from ...errors import TaskError
from ...progress import SILENT, Progress
from ...tasks import Examples
from ..subject import Subject
from .likelihood import FisherKind, check_kind, cotangents
from .record import statistics_of
from .squares import Collector, DoubtError

FisherPrecision = Literal["fp32", "bf16"]

# Examples on which the error of bf16 is measured.
_COMPARED = 32


def fisher(
    subject: Subject,
    examples: Examples,
    *,
    kind: FisherKind = "expected",
    batch_size: int = 32,
    seed: int = 0,
    precision: FisherPrecision = "fp32",
    split: str = "",
    progress: Progress = SILENT,
) -> Memory:
    """The Fisher's diagonal as a checkpoint: the model's names and shapes, float32, with a record.

    >>> import numpy as np
    >>> from ..subject import module_subject
    >>> model = torch.nn.Linear(1, 2, bias=False)
    >>> _ = torch.nn.init.zeros_(model.weight)
    >>> examples = Examples({"input": np.array([[1.0], [3.0]], np.float32)}, np.array([0, 1]))
    >>> fisher(module_subject(model), examples).read("weight").flatten().tolist()  # p (1 - p) mean(x^2)
    [1.25, 1.25]

    Args:
        subject: the model, on its device; see `open_subject`.
        examples: what the mean is over.
        kind: whose labels: `expected`, of all that the model gives, by its probabilities, exactly (classes - 1 backward
            passes a batch); `sampled`, one drawn from the model for each example, or each token; `empirical`, the data's.
        batch_size: examples at a time; it changes the rounding and nothing else.
        seed: of the drawn labels; with an example's number it decides them.
        precision: `bf16` runs the passes under autocast; its error is measured on some examples and recorded.
        split: where the examples are from, for the record.
        progress: told of every batch.

    Returns:
        A checkpoint that is bound to the model's content id; save it with `.save(folder)`.

    Raises:
        TaskError: no such kind for this model, no examples, or numbers that are not finite.
    """
    check_kind(kind, subject.outputs)
    if precision not in ("fp32", "bf16"):
        raise TaskError("no such precision", got=precision, expected="fp32 or bf16")
    found = _means(subject, examples, kind, batch_size, seed, precision, progress)
    error = None
    if precision == "bf16":
        some = examples.first(_COMPARED)
        right, rounded = (_means(subject, some, kind, batch_size, seed, p, SILENT)[0] for p in ("fp32", "bf16"))
        norms = [
            sum(float(t.double().square().sum()) for t in ts)
            for ts in (right.values(), [rounded[n] - t for n, t in right.items()])
        ]
        error = (norms[1] / norms[0]) ** 0.5 if norms[0] else 0.0
    return statistics_of(
        subject,
        found[0],
        examples,
        kind="fisher",
        split=split,
        seed=seed,
        estimator=kind,
        precision=precision,
        error=error,
        fallback=found[1],
    )


def _means(
    subject: Subject,
    examples: Examples,
    kind: FisherKind,
    batch_size: int,
    seed: int,
    precision: FisherPrecision,
    progress: Progress,
) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    def around() -> AbstractContextManager[Any]:
        return torch.autocast(subject.device.type, torch.bfloat16, enabled=precision == "bf16")

    told: set[str] = set()

    def summed(apart: frozenset[str]) -> Collector:
        bar = progress.bar("fisher", len(examples))
        with Collector(subject, around=around, apart=apart) as squares:
            for batch in subject.batches(examples, batch_size):
                squares.add(batch, partial(cotangents, kind, subject.outputs, seed=seed))
                if new := [name for name in squares.fallback or () if name not in told]:
                    progress.say(f"no rule for {', '.join(new)}: found by torch.func, slower and as exact")
                    told.update(new)
                bar.advance(len(batch))
        return squares

    apart: frozenset[str] = frozenset()
    while True:
        try:
            squares = summed(apart)
            return squares.means(), squares.fallback or ()
        except DoubtError as doubt:  # each time there is one name more at least
            apart |= doubt.names
