"""A study of seconds: digits, a body of one layer, and workers that need no process."""

from __future__ import annotations

import shutil
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
import torch
import yaml

from cofuse.checkpoint import Checkpoint
from cofuse.evolve import read_records, run
from cofuse.evolve.study import read_study
from cofuse.evolve.work import Work
from cofuse.progress import SILENT, Progress
from cofuse.store import Store


def task(name: str, *groups: list[int]) -> dict[str, Any]:
    return {"name": name, "kind": "image_classification", "data": {"source": "digits", "groups": list(groups)}}


STUDY: dict[str, Any] = {
    "name": "tiny",
    "seeds": [0],
    "base": {
        "objective": "masked_image",
        "data": {"source": "digits"},
        "steps": 10,
        "model": {
            "model_type": "vit",
            "image_size": 8,
            "patch_size": 2,
            "num_channels": 1,
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        },
    },
    "seen": [
        task("even", [1, 3, 5], [0, 2, 4]),
        task("least", [0, 1, 2], [3, 4, 5]),
        task("prime", [0, 1, 4], [2, 3, 5]),
    ],
    "unseen": [task("rest", [6], [7], [8], [9])],
    "rounds": 2,
    "examples": 40,
    "finetune": {"steps": 3, "batch_size": 8, "learning_rate": 1e-3, "precision": "fp32"},
    "evaluate_unseen": {
        "probe": {"examples": 40, "test": 60},
        "fewshot": {
            "every": 0,
            "examples": 10,
            "draws": 1,
            "test": 60,
            "finetuning": {"steps": 2, "batch_size": 8, "precision": "fp32"},
        },
    },
    "evaluate_seen": {"oldhead": {"every": 0, "examples": 40, "test": 60}},
    "baselines": {"steps": 3, "intertrain": ["probe"], "fuse_once": True, "multitask": 4},
}

# Rounds alone: what tests of contributions need.
ROUNDS: dict[str, Any] = {"evaluate_unseen": {}, "evaluate_seen": {}, "baselines": {}}


def write(path: Path, **changes: Any) -> Path:
    """The study as a file, with changes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({**STUDY, **changes}, sort_keys=False))
    return path


class Here:
    """Workers without processes: obviously right, and what the processes are compared with."""

    _one_at_a_time = threading.Lock()  # bodies are loaded into modules that are kept, one a process

    def __init__(self, count: int, threads: int) -> None:
        self.done: list[Work] = []

    def start(self) -> None:
        pass

    def do(self, work: Work) -> dict[str, Any]:
        with self._one_at_a_time, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.set_num_threads(1)
            result = work()
            self.done.append(work)
            return result

    def kill(self) -> None:
        pass

    def __enter__(self) -> Here:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


class Told:
    """Progress that remembers."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.total = self.done = 0.0

    def bar(self, what: str, total: float, unit: str = "") -> Told:
        self.total = total
        return self

    def advance(self, amount: float = 1) -> None:
        self.done += amount

    def say(self, line: str) -> None:
        self.lines.append(line)


def go(
    study: Path,
    folder: Path,
    *,
    base: Checkpoint | None = None,
    progress: Progress = SILENT,
    workers: Callable[[int, int], Any] = Here,
) -> Any:
    """Run a study in this process; gives its workers."""
    hired: list[Any] = []

    def hire(count: int, threads: int) -> Any:
        hired.append(workers(count, threads))
        return hired[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "Workers", hire)
        run.evolve(read_study(study), folder, base, workers=1, progress=progress)
    return hired[-1]


def copy(folder: Path, to: Path) -> Path:
    """A run's folder somewhere else."""
    shutil.copytree(folder, to)
    return to


def trees(folder: Path) -> dict[str, str]:
    """The tree at the tip of each branch."""
    store = Store.open(folder)
    return {name: store.load_commit(commit).tree for name, commit in store.branches().items()}


def outcome(folder: Path) -> tuple[dict[str, str], dict[str, tuple[float, ...]], set[str]]:
    """What a run gave: the tree of every branch, every score, and which pieces of work were done."""
    records = read_records(folder / "records.jsonl")
    return trees(folder), {r.id: r.values for r in records if r.kind == "score"}, {r.id for r in records}
