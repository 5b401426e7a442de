"""Finetuning as one thing: a mask or an adapter, the training, the score, and what is handed on."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ..._version import __version__
from ...checkpoint import Checkpoint, Memory, body, content_id, open_local
from ...checkpoint.adapter import Adapter
from ...checkpoint.bitcode import as_bits
from ...checkpoint.durable import explained, replacing
from ...checkpoint.writer import refuse_to_replace
from ...errors import CheckpointError
from ...patch import Patch, Way, make
from ...patch.adapters import FromAdapter
from ...patch.choice import Choice
from ...progress import SILENT, Progress
from ...tasks import Examples, Task
from ...tasks.finetune import Finetuning, Tuned, finetune
from ...tasks.heads import HEAD, head_bytes, open_tuned
from ...tasks.masked import masked_checkpoint
from ...tasks.model import body_checkpoint
from ...tasks.peft import Adapting, Lora
from ..statistics.fisher import fisher
from ..statistics.record import check_model
from ..subject import open_subject
from .masks import mask_of, trainable
from .work import FISHER, TRAINER, examples_id, keep_apart

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
        check_places(folder, head, patch=False)
        beside = {HEAD: self.head} if head is None else {}
        with contextlib.nullcontext() if head is None else self._head_at(head):
            return self.checkpoint.save(folder, threads=threads, progress=progress, last=lambda: beside).bytes

    def save_patch(
        self, path: Path, *, head: Path | None = None, threads: int = 1, progress: Progress = SILENT
    ) -> Patch:
        """Write the patch that gives `checkpoint` back bit for bit, and the head beside it.

        Raises:
            PatchError: a value is not finite.
            CheckpointError: it cannot be written.
        """
        check_places(path, head, patch=True)
        with self._head_at(_beside(path) if head is None else head):
            return make(self.base, self.checkpoint, path, self.way, threads=threads, progress=progress)

    @contextlib.contextmanager
    def _head_at(self, path: Path) -> Iterator[None]:
        """Write the head first; it gets its name when the weights have theirs, so that neither stands alone."""
        with replacing(path) as file:
            file.write(self.head)
            file.flush()
            yield


def check_places(out: Path, head: Path | None, *, patch: bool) -> None:
    """Refuse, before a training already, places that a model's folder or a patch, and its head, cannot be written to.

    Raises:
        CheckpointError: names what stands there.
    """
    if not patch:
        refuse_to_replace(out)
    elif out.is_dir():
        raise CheckpointError("a folder, not a patch", where=out, hint="another name: -o x.patch")
    if head is not None and out.resolve() in (head.resolve(), *head.resolve().parents):
        raise CheckpointError("the head would replace the weights, or they it", where=head, hint="another place")
    if head is None and patch:
        head = _beside(out)
    if head is not None and head.is_dir():
        raise CheckpointError("a folder, not a head's file", where=head, expected="a new name, or a file to replace")
    for place in [out if patch else out.resolve(), *([head] if head else [])]:
        with explained(place):
            there = next(p for p in place.absolute().parents if p.exists())
        if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
            raise CheckpointError("cannot write", where=place, got=there, expected="a folder that may be written")


def _beside(patch: Path) -> Path:
    return patch.with_suffix(f".{HEAD}")


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
        base,
        task,
        head=settings.head,
        seed=seed,
        max_length=settings.max_length,
        pooling=settings.pooling,
        probe_on=examples,
        precision=settings.precision,
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
        folder: where work is kept until the end, so that the same call goes on after an interruption; a new one, or
            one of earlier work, which is only taken up where it was the same. Whoever gives it removes it: `work.discard`.
        threads: of all but the training.
        progress: told of each stage.

    Raises:
        TaskError: the model does not fit the task, the folder holds other things, or training diverged.
        PatchError: the mask cannot be made.
    """
    train = task.examples("train") if examples is None else examples
    record = {
        "version": __version__,
        "base": content_id(base),
        "task": task.name,
        "task_id": task.id,
        "examples": len(train),
        "examples_id": examples_id(train),
        "settings": settings.model_dump(mode="json"),
        "part": _says(part),
        "part_settings": part.model_dump(mode="json") if isinstance(part, Adapting) else part and asdict(part),
        "seed": seed,
        "fisher": None if statistics is None else content_id(statistics),
        "fisher_examples": fisher_examples,
    }
    if folder is not None:
        keep_apart(folder, record)

    def statistics_of() -> Checkpoint:
        if statistics is not None:
            check_model(statistics, base)
            return statistics
        kept = None if folder is None else folder / FISHER
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
        folder=None if folder is None else folder / TRAINER,
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
        tuned = open_tuned(held, Path(folder), task, precision=settings.precision)
    return task.score(tuned.predict(examples), examples.labels)
