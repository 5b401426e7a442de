"""What the studies on all-MiniLM-L6-v2 share: short trainings kept as folders, and records that a stopped run goes on from."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import cofuse
from cofuse.checkpoint import Checkpoint, open_local, replace_file
from cofuse.measure.intervals import Interval, interval
from cofuse.tasks import Task, draw
from cofuse.tasks.finetune import Finetuning, Tuned, finetune
from cofuse.tasks.heads import HEAD, head_bytes
from cofuse.tasks.model import body_checkpoint

BASE = "sentence-transformers/all-MiniLM-L6-v2"
LENGTH = 32  # tokens
# As good as longer trainings for telling bodies apart: a head that learns fast, a body that does not forget.
SHORT: dict[str, Any] = {
    "learning_rate": 1e-4,
    "head_learning_rate": 2e-3,
    "batch_size": 16,
    "max_length": LENGTH,
    "weight_decay": 0.01,
}


class Records:
    """Lines of OUT/records.jsonl by their key."""

    def __init__(self, out: Path) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.path = out / "records.jsonl"
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        self.known = {tuple(row["key"]): row for row in map(json.loads, lines)}

    def get(self, key: tuple[Any, ...], work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What is known of a key; found and kept, with the processor's seconds, when it is not."""
        if key not in self.known:
            began = processor()
            row = {"key": key, **work(), "seconds": round(processor() - began, 1)}
            with self.path.open("a") as file:
                file.write(json.dumps(row) + "\n")
            self.known[key] = row
            print(*key, {k: v for k, v in row.items() if k != "key"}, flush=True)
        return self.known[key]

    @property
    def minutes(self) -> float:
        """Of processor time, all records together."""
        return sum(float(row["seconds"]) for row in self.known.values()) / 60


def processor() -> float:
    """Seconds of processor time of this process and of the ones that it waited for."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + ended.ru_utime + ended.ru_stime


def trained(
    start: Checkpoint, task: Task, examples: int, settings: Finetuning, seed: int, folder: Path, *, draws: int = 7
) -> Checkpoint:
    """Finetune on some of a task's training examples; the body is kept as a folder, its head beside it."""
    if not (folder / HEAD).exists():
        tuned = finetune(start, task, draw(task.examples("train"), examples, [draws, seed]), settings, seed=seed)
        save(tuned, start, folder)
    return open_local(folder)


def save(tuned: Tuned, start: Checkpoint, folder: Path) -> None:
    """The head last: a folder with a head is whole."""
    body_checkpoint(tuned.model.body, start).save(folder)
    replace_file(folder / HEAD, head_bytes(tuned))


def shown(values: Sequence[Sequence[float]]) -> str:
    """Mean and 95 % interval of paired differences [task, seed], with Wilcoxon's p over all of them."""
    from scipy.stats import wilcoxon

    array = np.array(values, float)
    found: Interval = interval(array[:, :, None])
    p = float(wilcoxon(array.ravel()).pvalue) if np.any(array) else 1.0
    return f"{found.mean:+.2f} ({found.low:+.2f} to {found.high:+.2f}), p {p:.2g}, {array.size} pairs"


def base() -> Checkpoint:
    """The pretrained model."""
    return cofuse.open(BASE)
