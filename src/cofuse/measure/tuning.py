"""Finetuning as one thing: a mask or an adapter, the training, the score, and what is handed on."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from .._version import __version__
from ..checkpoint import Checkpoint, Memory, body, content_id, open_local, replace_file
from ..checkpoint.adapter import Adapter
from ..checkpoint.bitcode import as_bits
from ..patch import Patch, Way, make
from ..patch.adapters import FromAdapter
from ..patch.choice import Choice
from ..progress import SILENT, Progress
from ..tasks import Examples, Task
from ..tasks.finetune import Finetuning, Tuned, finetune
from ..tasks.heads import HEAD, head_bytes, open_tuned
from ..tasks.masked import masked_checkpoint
from ..tasks.model import body_checkpoint
from ..tasks.peft import Adapting, Lora
from .fisher import fisher
from .masks import mask_of, trainable
from .statistics import check_model
from .subject import open_subject

FISHER_EXAMPLES = 1024  # as in the paper


@dataclass(frozen=True)
class Trained(Way):
    """An exact patch that says how its values came about."""

    finite: ClassVar[bool] = True

    part: str = ""

    def says(self) -> str:
        return f"exact, trained: {self.part}"


@dataclass(frozen=True, slots=True)
class Finetuned:
    """What a finetuning made.

    Attributes:
        base: what it started from.
        checkpoint: the tuned body, under the base's names and in its dtypes.
        head: the task's head as a file; see `tasks.heads`.
        way: how its patch is made; it loses nothing.
        score: of `checkpoint` with the head on the validation split, in percent by the task's metric.
        trained: values of the body, or of the adapter, that were trained.
        reachable: values of the body that a full finetuning would train.
        record: what made it; the head carries it.
    """

    base: Checkpoint
    checkpoint: Checkpoint
    head: bytes
    way: Way
    score: float
    trained: int
    reachable: int
    record: Mapping[str, Any]

    def changed(self) -> int:
        """Values that differ from the base's, bit for bit."""
        count = 0
        for name in self.base.names():
            spec = self.base.spec(name)
            for block in self.base.blocks(name):
                before, after = (
                    as_bits(cp.read_bytes(name, *block), spec.dtype) for cp in (self.base, self.checkpoint)
                )
                count += int(np.count_nonzero(before != after))
        return count

    def save(self, folder: Path, *, head: Path | None = None, threads: int = 1, progress: Progress = SILENT) -> int:
        """Write the model's folder, with its head in it or where `head` says; gives the bytes of the weights.

        Raises:
            CheckpointError: it cannot be written; what was there is untouched.
        """
        beside = {HEAD: self.head} if head is None else {}
        written = self.checkpoint.save(folder, threads=threads, progress=progress, last=lambda: beside)
        if head is not None:
            replace_file(head, self.head)
        return written.bytes

    def save_patch(
        self, path: Path, *, head: Path | None = None, threads: int = 1, progress: Progress = SILENT
    ) -> Patch:
        """Write the patch that gives `checkpoint` back bit for bit, and the head beside it.

        Raises:
            PatchError: a value is not finite.
            CheckpointError: it cannot be written.
        """
        made = make(self.base, self.checkpoint, path, self.way, threads=threads, progress=progress)
        replace_file(path.with_suffix(f".{HEAD}") if head is None else head, self.head)
        return made


def measured_fisher(
    base: Checkpoint,
    task: Task,
    examples: Examples,
    settings: Finetuning,
    *,
    seed: int,
    examples_wanted: int | None = FISHER_EXAMPLES,
    progress: Progress = SILENT,
) -> Checkpoint:
    """The empirical Fisher that a FISH mask takes: at the base, under the head that the training will start from.

    Source: arXiv 2111.09839, sec. 2.2; a random head is about as good there as a trained one.
    """
    subject = open_subject(
        base, task, head=settings.head, seed=seed, max_length=settings.max_length, pooling=settings.pooling
    )
    some = examples.first(examples_wanted)
    return fisher(subject, some, kind="empirical", seed=seed, split="train", progress=progress)


def tune(
    base: Checkpoint,
    task: Task,
    settings: Finetuning,
    part: Choice | Adapting | None = None,
    *,
    seed: int = 0,
    examples: Examples | None = None,
    statistics: Checkpoint | None = None,
    fisher_examples: int = FISHER_EXAMPLES,
    folder: Path | None = None,
    threads: int = 1,
    progress: Progress = SILENT,
) -> Finetuned:
    """Finetune a base on a task, under a mask, as an adapter, or whole.

    Args:
        base: the checkpoint to start from.
        task: what to train on.
        settings: how.
        part: which values train: a mask's choice, `Lora` or `Ia3`; all of the body when None.
        seed: of head, order, dropout, adapter and a random mask.
        examples: to train on; the train split when None.
        statistics: a Fisher for a `fish` mask; measured on the examples when None.
        fisher_examples: how many it is measured on, at most.
        folder: where work is kept until the end, so that the same call goes on after an interruption; whoever gives
            it removes it.
        threads: of all but the training.
        progress: told of each stage.

    Raises:
        TaskError: the model does not fit the task, or training diverged.
        PatchError: the mask cannot be made.
    """
    train = task.examples("train") if examples is None else examples
    record = {
        "version": __version__,
        "base": content_id(base),
        "task": task.name,
        "task_id": task.id,
        "examples": len(train),
        "settings": settings.model_dump(mode="json"),
        "part": _says(part),
        "seed": seed,
        "fisher": None if statistics is None else content_id(statistics),
        "fisher_examples": fisher_examples,
    }
    _keep_apart(folder, record, train)

    def statistics_of() -> Checkpoint:
        if statistics is not None:
            check_model(statistics, base)
            return statistics
        kept = None if folder is None else folder / "fisher"
        if kept is not None and kept.is_dir():
            return open_local(kept)
        found = measured_fisher(
            base, task, train, settings, seed=seed, examples_wanted=fisher_examples, progress=progress
        )
        if kept is not None:
            found.save(kept, threads=threads)
        return found

    mask = None
    if isinstance(part, Choice):
        mask = mask_of(part, base, fisher=statistics_of, seed=seed, threads=threads, progress=progress)
    validation = task.examples("validation")
    tuned = finetune(
        base,
        task,
        train,
        settings,
        seed=seed,
        validation=validation if settings.patience is not None else None,
        mask=mask,
        adapt=part if isinstance(part, Adapting) else None,
        folder=None if folder is None else folder / "trainer",
        progress=progress,
    )
    trainer = [p for p in tuned.model.body.parameters() if p.requires_grad]
    count = sum(p.numel() if (kept := (tuned.chosen or {}).get(p)) is None else len(kept) for p in trainer)
    head = head_bytes(tuned, record)
    result, way = _result(base, tuned, _says(part))
    score = _score(result, head, task, validation, settings)
    reachable = sum(spec.numel for spec in trainable(base).values())
    said = {**record, "steps": tuned.steps, "score": score, "metric": task.score_name, "trained": count}
    return Finetuned(base, result, head, way, score, count, reachable, said)


def _says(part: Choice | Adapting | None) -> str:
    return "all of the body" if part is None else str(part)


def _keep_apart(folder: Path | None, record: Mapping[str, Any], train: Examples) -> None:
    """A folder of other work is emptied: what it holds would lead elsewhere."""
    if folder is None:
        return
    said = json.dumps({**record, "labels": train.labels.tolist()}, sort_keys=True)
    kept = folder / "work.json"
    if not (kept.is_file() and kept.read_text(encoding="utf-8") == said):
        shutil.rmtree(folder, ignore_errors=True)
        replace_file(kept, said.encode())


def _result(base: Checkpoint, tuned: Tuned, says: str) -> tuple[Checkpoint, Way]:
    if tuned.adapted is not None:
        with tempfile.TemporaryDirectory(prefix="cofuse-adapter-") as folder:
            tuned.adapted.save(Path(folder))
            adapter = Adapter(Path(folder), base)  # its file stays open
        return adapter, FromAdapter(adapter) if isinstance(tuned.adapted.settings, Lora) else Trained(says)
    if tuned.chosen is not None:
        return masked_checkpoint(tuned.model.body, base, tuned.chosen), Trained(says)
    held = body_checkpoint(tuned.model.body, base)
    return body(held, like=base), Trained(says)


def _score(result: Checkpoint, head: bytes, task: Task, examples: Examples, settings: Finetuning) -> float:
    """Of what is written, in the base's dtype, rather than of what was in memory while it trained."""
    held = Memory({name: result.read(name) for name in result.names()}, files=dict(result.files), where=result.where)
    with tempfile.TemporaryDirectory(prefix="cofuse-head-") as folder:
        (Path(folder) / HEAD).write_bytes(head)
        tuned = open_tuned(held, Path(folder), task)
    return task.score(tuned.predict(examples), examples.labels)
