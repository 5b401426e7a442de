"""Protocols: how good a body is as a pretrained model. One table; a row is a function from a body to scores.

Each protocol draws its training examples from the task's train split, keyed by the study's seed and the draw, so that
every model is measured on the same examples and differences are paired; it scores on the test split. Models that are
measured as they are, with a head of their own, are in `whole.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from ...checkpoint import Checkpoint
from ...document import Document
from ...errors import TaskError
from ...tasks import Examples, Task, draw, draw_rows
from ...tasks.finetune import Finetuning, Tuned, finetune
from ...tasks.model import forward_all
from ...tasks.probe import Probe, Probing, features
from ..outcomes import Outcomes
from .features import Features

# Keeps the draws of a protocol apart from the draws of contributors, which use the same seeds.
DRAWS = 0x5C0


class Protocol(Document):
    """What all protocols share.

    `every` counts rounds between measurements of an evolving model: 1 measures each round, 0 only the last one.
    """

    every: int = Field(1, ge=0)
    draws: int = Field(1, gt=0)
    examples: int | None = Field(None, gt=0)  # to train on; all when None
    test: int | None = Field(None, gt=0)  # first rows of the test split; all when None

    def due(self, round_number: int, last: int) -> bool:
        """Whether a round is measured.

        >>> [Protocol(every=2).due(r, 5) for r in range(1, 6)]
        [False, True, False, True, True]
        """
        return round_number == last or (self.every > 0 and round_number % self.every == 0)


class ProbeProtocol(Protocol):
    """Linear probing on a frozen body."""

    probing: Probing = Probing()


class FinetuneProtocol(Protocol):
    """Full finetuning of body and head."""

    finetuning: Finetuning


class FewshotProtocol(FinetuneProtocol):
    """Full finetuning on few examples, drawn several times."""

    examples: int | None = Field(100, gt=0)
    draws: int = Field(3, gt=0)


class OldHeadProtocol(ProbeProtocol):
    """Heads fitted on the old body, run on the new one: does what people built on it still work?"""


@dataclass(frozen=True, slots=True)
class Measured:
    """Scores of one protocol: one a draw, in percent; how many test examples each rests on, and what became of each.

    The outcomes, one a draw, name neither the model nor a suite: whoever asked for them knows.
    """

    values: tuple[float, ...]
    tested: int
    outcomes: tuple[Outcomes, ...] = field(default=(), compare=False)


@dataclass(frozen=True, slots=True)
class Given:
    """What some protocols need besides the model: the body that old heads are fitted on, and a cache of features."""

    old: Checkpoint | None = None
    cache: Features | None = None


def run_probe(body: Checkpoint, task: Task, settings: Any, seed: int, given: Given) -> Measured:
    """Fit a linear head on the body's frozen features of each draw."""
    return _probe("probe", body, body, task, settings, seed, given.cache)


def run_oldhead(body: Checkpoint, task: Task, settings: Any, seed: int, given: Given) -> Measured:
    """Fit the linear head on the old body's features, and run it on the new body's.

    Raises:
        TaskError: there is no old body.
    """
    if given.old is None:
        raise TaskError("old heads need the old body", where=task.name)
    return _probe("oldhead", given.old, body, task, settings, seed, given.cache)


def _probe(
    name: str,
    fitted_on: Checkpoint,
    run_on: Checkpoint,
    task: Task,
    settings: Any,
    seed: int,
    cache: Features | None,
) -> Measured:
    train, test = task.examples("train"), task.examples("test").first(settings.test)
    drawn = [draw_rows(train, settings.examples, [DRAWS, seed, d]) for d in range(settings.draws)]
    # Draws overlap: each example goes through the body once.
    rows = np.unique(np.concatenate(drawn))
    if cache is None:
        vectors = features(fitted_on, task, train.take(rows), settings.probing)
        tested = features(run_on, task, test, settings.probing)
    else:
        vectors = cache.of(fitted_on, task, "train", rows, settings.probing)
        tested = cache.of(run_on, task, "test", np.arange(len(test)), settings.probing)
    values, outcomes = [], []
    for wanted in drawn:
        head = Probe(task, vectors[np.searchsorted(rows, wanted)], train.labels[wanted], settings.probing)
        logits = None
        if not task.what.continuous:
            weight, bias = head.linear(task.outputs)
            logits = tested @ weight.T + bias
        predicted = head.predict(tested)
        values.append(task.score(predicted, test.labels))
        outcomes.append(outcomes_of(name, task, seed, predicted, test, logits))
    return Measured(tuple(values), len(test), tuple(outcomes))


def run_finetune(body: Checkpoint, task: Task, settings: Any, seed: int, given: Given) -> Measured:
    """Finetune body and head on each draw."""
    test = task.examples("test").first(settings.test)
    train = task.examples("train")
    validation: Examples | None = None
    if settings.finetuning.patience is not None:
        validation = task.examples("validation")
    name = "fewshot" if isinstance(settings, FewshotProtocol) else "finetune"
    values, outcomes = [], []
    for d in range(settings.draws):
        sample = draw(train, settings.examples, [DRAWS, seed, d])
        tuned = finetune(body, task, sample, settings.finetuning, seed=1000 * seed + d, validation=validation)
        logits = _logits(tuned, test)
        predicted = task.what.predict(logits)
        values.append(task.score(predicted, test.labels))
        outcomes.append(outcomes_of(name, task, seed, predicted, test, logits))
    return Measured(tuple(values), len(test), tuple(outcomes))


def _logits(tuned: Tuned, examples: Examples) -> npt.NDArray[np.float32]:
    """What `Tuned.predict` takes the predictions from: logits [n, outputs]."""
    what, settings = tuned.task.what, tuned.settings
    encoded = what.encode(examples, tuned.like, settings.max_length)
    tuned.model.eval()
    return forward_all(lambda batch: tuned.model(**batch)["logits"], what, encoded, settings.precision)


def outcomes_of(
    name: str,
    task: Task,
    seed: int,
    predicted: npt.NDArray[Any],
    test: Examples,
    logits: npt.NDArray[Any] | None,
) -> Outcomes:
    """Outcomes of a protocol on the first rows of a test split; `logits` [n, classes] where there are classes."""
    from scipy.special import log_softmax

    said = None
    if logits is not None and not task.what.continuous:
        said = log_softmax(np.asarray(logits, dtype=np.float64), axis=1).astype(np.float32)
    return Outcomes.predicted(
        predicted,
        test.labels,
        metric=task.score_name,
        model="",
        task=task.name,
        task_id=task.id,
        protocol=name,
        seed=seed,
        log_probabilities=said,
    )


Runner = Callable[[Checkpoint, Task, Any, int, Given], Measured]

PROTOCOLS: Mapping[str, tuple[type[Protocol], Runner]] = {
    "finetune": (FinetuneProtocol, run_finetune),
    "probe": (ProbeProtocol, run_probe),
    "fewshot": (FewshotProtocol, run_finetune),
    "oldhead": (OldHeadProtocol, run_oldhead),
}


class Evaluation(Document):
    """Which protocols measure a suite, and how."""

    finetune: FinetuneProtocol | None = None
    probe: ProbeProtocol | None = None
    fewshot: FewshotProtocol | None = None
    oldhead: OldHeadProtocol | None = None

    def chosen(self) -> dict[str, Protocol]:
        """The protocols that are given, by name."""
        found: dict[str, Protocol | None] = {
            "finetune": self.finetune,
            "probe": self.probe,
            "fewshot": self.fewshot,
            "oldhead": self.oldhead,
        }
        return {name: protocol for name, protocol in found.items() if protocol is not None}


def measure(
    body: Checkpoint,
    task: Task,
    name: str,
    settings: Protocol,
    *,
    seed: int,
    old: Checkpoint | None = None,
    cache: Features | None = None,
) -> Measured:
    """Measure a body on a task by a protocol.

    Args:
        body: the body to measure.
        task: gives the data and the metric.
        name: a row of `PROTOCOLS`.
        settings: of that protocol.
        seed: of the draws, and of the training on them.
        old: the body that old heads are fitted on.
        cache: of features; nothing is kept when None. What it gives is what would be computed, bit for bit.
    """
    return PROTOCOLS[name][1](body, task, settings, seed, Given(old, cache))
