"""The pieces of work of a run, as worker processes do them: each depends on its arguments alone.

Arguments and results are plain and small; weights travel through the store and the contributions folder.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..checkpoint import Checkpoint, Memory
from ..measure.protocols import Protocol, measure
from ..store import Store
from ..tasks import Task, draw
from ..tasks.finetune import Finetuning, finetune
from ..tasks.model import body_checkpoint
from ..tasks.multitask import finetune_multitask
from ..tasks.pretrain import Pretraining, pretrain

# Keeps the draws of contributors apart from those of protocols, which use the same seeds.
_CONTRIBUTORS = 0xC0D


@dataclass(frozen=True, slots=True)
class Contribute:
    """Finetune a base on one task and write the body into a folder."""

    store: Path
    base: str  # tree id
    task: Task
    examples: int | None
    sample: tuple[int, ...]  # keys the draw of the examples
    settings: Finetuning
    seed: int
    folder: Path

    def __call__(self) -> dict[str, Any]:
        """Steps taken, examples used, best validation score, seconds."""
        began = time.monotonic()
        base = _opened(self.store, self.base)
        mine = draw(self.task.examples("train"), self.examples, (_CONTRIBUTORS, *self.sample))
        validation = self.task.examples("validation") if self.settings.patience is not None else None
        tuned = finetune(base, self.task, mine, self.settings, seed=self.seed, validation=validation)
        body_checkpoint(tuned.model.body, base).save(self.folder, threads=1)
        return _training(began, tuned.steps, len(mine), tuned.validation)


@dataclass(frozen=True, slots=True)
class Multitask:
    """Finetune a base on all tasks at once and write the body into a folder."""

    store: Path
    base: str
    tasks: tuple[Task, ...]
    examples: int | None
    samples: tuple[tuple[int, ...], ...]
    settings: Finetuning
    seed: int
    folder: Path

    def __call__(self) -> dict[str, Any]:
        """Steps taken, examples used, seconds."""
        began = time.monotonic()
        base = _opened(self.store, self.base)
        parts = [
            (task, draw(task.examples("train"), self.examples, (_CONTRIBUTORS, *sample)))
            for task, sample in zip(self.tasks, self.samples, strict=True)
        ]
        trained = finetune_multitask(base, parts, self.settings, seed=self.seed)
        body_checkpoint(trained, base).save(self.folder, threads=1)
        total = sum(len(e) for _, e in parts)
        return _training(began, self.settings.total_steps(total), total)


@dataclass(frozen=True, slots=True)
class Pretrain:
    """Pretrain a base from nothing and write it into a folder."""

    settings: Pretraining
    folder: Path

    def __call__(self) -> dict[str, Any]:
        """Steps taken, seconds."""
        began = time.monotonic()
        pretrain(self.settings).save(self.folder, threads=1)
        return _training(began, self.settings.steps, self.settings.steps * self.settings.batch_size)


@dataclass(frozen=True, slots=True)
class Evaluate:
    """Measure one model on one task by one protocol."""

    store: Path
    tree: str
    old: str | None  # tree of the body that old heads are fitted on
    task: Task
    protocol: str
    settings: Protocol
    seed: int

    def __call__(self) -> dict[str, Any]:
        """Scores, how many test examples, seconds."""
        began = time.monotonic()
        body = _opened(self.store, self.tree)
        old = None if self.old is None else _opened(self.store, self.old)
        measured = measure(body, self.task, self.protocol, self.settings, seed=self.seed, old=old)
        return {
            "values": [round(v, 6) for v in measured.values],
            "tested": measured.tested,
            "seconds": round(time.monotonic() - began, 3),
        }


def _training(began: float, steps: int, examples: int, validation: float | None = None) -> dict[str, Any]:
    """What a training run tells its record."""
    seconds = round(time.monotonic() - began, 3)
    return {"steps": steps, "examples": examples, "validation": validation, "seconds": seconds}


Work = Contribute | Multitask | Pretrain | Evaluate


def seed_of(*parts: object) -> int:
    """A seed of 31 bits from whatever names a piece of work.

    >>> seed_of("round", 1) == seed_of("round", 1) != seed_of("round", 2)
    True
    """
    digest = hashlib.sha256(json.dumps(list(map(str, parts))).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


@lru_cache(maxsize=2)
def _opened(store: Path, tree: str) -> Checkpoint:
    """A model in memory: a worker measures the same one many times in a row."""
    stored = Store.open(store).checkpoint(tree)
    return Memory({name: stored.read(name) for name in stored.names()}, files=dict(stored.files), where=stored.where)
