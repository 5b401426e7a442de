"""Protocols: how good a body is as a pretrained model. One table; a row is a function from a body to scores.

Each protocol draws its training examples from the task's train split, keyed by the study's seed and the draw, so that
every model is measured on the same examples and differences are paired; it scores on the test split.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import Field

from ..checkpoint import Checkpoint
from ..document import Document
from ..errors import TaskError
from ..tasks import Examples, Task, draw, draw_rows
from ..tasks.finetune import Finetuning, finetune
from ..tasks.probe import Probe, Probing, features

# Keeps the draws of a protocol apart from the draws of contributors, which use the same seeds.
_DRAWS = 0x5C0


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
    """Scores of one protocol: one a draw, in percent; and how many test examples each rests on."""

    values: tuple[float, ...]
    tested: int


def run_probe(body: Checkpoint, task: Task, settings: Any, seed: int, old: Checkpoint | None) -> Measured:
    """Fit a linear head on the body's frozen features of each draw."""
    return _probe(body, body, task, settings, seed)


def run_oldhead(body: Checkpoint, task: Task, settings: Any, seed: int, old: Checkpoint | None) -> Measured:
    """Fit the linear head on the old body's features, and run it on the new body's.

    Raises:
        TaskError: there is no old body.
    """
    if old is None:
        raise TaskError("old heads need the old body", where=task.name)
    return _probe(old, body, task, settings, seed)


def _probe(fitted_on: Checkpoint, run_on: Checkpoint, task: Task, settings: Any, seed: int) -> Measured:
    train, test = task.examples("train"), task.examples("test").first(settings.test)
    drawn = [draw_rows(train, settings.examples, [_DRAWS, seed, d]) for d in range(settings.draws)]
    # Draws overlap: each example goes through the body once.
    rows = np.unique(np.concatenate(drawn))
    vectors = features(fitted_on, task, train.take(rows), settings.probing)
    tested = features(run_on, task, test, settings.probing)
    values = []
    for wanted in drawn:
        head = Probe(task, vectors[np.searchsorted(rows, wanted)], train.labels[wanted], settings.probing)
        values.append(task.score(head.predict(tested), test.labels))
    return Measured(tuple(values), len(test))


def run_finetune(body: Checkpoint, task: Task, settings: Any, seed: int, old: Checkpoint | None) -> Measured:
    """Finetune body and head on each draw."""
    test = task.examples("test").first(settings.test)
    train = task.examples("train")
    validation: Examples | None = None
    if settings.finetuning.patience is not None:
        validation = task.examples("validation")
    values = []
    for d in range(settings.draws):
        sample = draw(train, settings.examples, [_DRAWS, seed, d])
        tuned = finetune(body, task, sample, settings.finetuning, seed=1000 * seed + d, validation=validation)
        values.append(task.score(tuned.predict(test), test.labels))
    return Measured(tuple(values), len(test))


Runner = Callable[[Checkpoint, Task, Any, int, Checkpoint | None], Measured]

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
    body: Checkpoint, task: Task, name: str, settings: Protocol, *, seed: int, old: Checkpoint | None = None
) -> Measured:
    """Measure a body on a task by a protocol.

    Args:
        body: the body to measure.
        task: gives the data and the metric.
        name: a row of `PROTOCOLS`.
        settings: of that protocol.
        seed: of the draws, and of the training on them.
        old: the body that old heads are fitted on.
    """
    return PROTOCOLS[name][1](body, task, settings, seed, old)
