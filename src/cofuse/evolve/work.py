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

import torch

from ..checkpoint import Checkpoint, Memory, content_id, save
from ..measure.evaluation.protocols import Protocol, measure
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
        """Steps taken, examples used, best validation score, seconds, content id of what was written."""
        began = time.monotonic()
        base = _opened(self.store, self.base)
        mine = draw(self.task.examples("train"), self.examples, (_CONTRIBUTORS, *self.sample))
        validation = self.task.examples("validation") if self.settings.patience is not None else None
        tuned = finetune(base, self.task, mine, self.settings, seed=self.seed, validation=validation)
        content = _write(body_checkpoint(tuned.model.body, base), self.folder)
        return _training(began, content, tuned.steps, len(mine), tuned.validation)


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
        """Steps taken, examples used, seconds, content id of what was written."""
        began = time.monotonic()
        base = _opened(self.store, self.base)
        parts = [
            (task, draw(task.examples("train"), self.examples, (_CONTRIBUTORS, *sample)))
            for task, sample in zip(self.tasks, self.samples, strict=True)
        ]
        trained = finetune_multitask(base, parts, self.settings, seed=self.seed)
        content = _write(body_checkpoint(trained, base), self.folder)
        total = sum(len(e) for _, e in parts)
        return _training(began, content, self.settings.total_steps(total), total)


@dataclass(frozen=True, slots=True)
class Pretrain:
    """Pretrain a base from nothing and write it into a folder."""

    settings: Pretraining
    folder: Path

    def __call__(self) -> dict[str, Any]:
        """Steps taken, seconds, content id of what was written."""
        began = time.monotonic()
        content = _write(pretrain(self.settings), self.folder)
        return _training(began, content, self.settings.steps, self.settings.steps * self.settings.batch_size)


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


def _write(made: Checkpoint, folder: Path) -> str:
    """Write weights that can be made again, and give their content id.

    They are not fsynced, which would take as long as some steps of training: whoever finds them after an interruption
    compares them with the id, and has them made again when a power cut took some of their bytes.
    """
    save(made, folder, threads=1, durable=False)
    return content_id(made, threads=1)


def _training(began: float, content: str, steps: int, examples: int, validation: float | None = None) -> dict[str, Any]:
    """What a training run tells its record."""
    seconds = round(time.monotonic() - began, 3)
    return {"steps": steps, "examples": examples, "validation": validation, "seconds": seconds, "content": content}


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
    return _Held({name: stored.read(name) for name in stored.names()}, files=dict(stored.files), where=stored.where)


class _Held(Memory):
    """A model that is read again and again, by code that copies what it reads: a second copy would take as long."""

    def read(self, name: str, rows: slice | None = None) -> torch.Tensor:
        if rows is not None or name not in self:
            return super().read(name, rows)
        return self._tensors[self.resolve(name)]
