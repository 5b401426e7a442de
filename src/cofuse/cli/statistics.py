"""Verbs that take statistics of a model on data: fisher, gram."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import address
from ..errors import TaskError
from ..progress import Progress, interruptible
from .progress import shown
from .tasks import Tasks, task_folders
from .training import needs_training
from .weights import Json

if TYPE_CHECKING:
    from ..checkpoint import Memory
    from ..measure.subject import Subject
    from ..tasks import Examples, Task

Model = Annotated[str, typer.Argument(metavar="MODEL", help="The model.")]
TaskName = Annotated[str, typer.Option("--task", metavar="T", help="A task: a folder, or a YAML file.")]
Count = Annotated[int, typer.Option("--examples", min=1, help="Examples, drawn from the split.")]
Split = Annotated[str, typer.Option("--split", help="Of the task's data: train, validation or test.")]
BatchSize = Annotated[int, typer.Option("--batch", min=1, help="Examples at a time.")]
Head = Annotated[str, typer.Option("--head", help="On the body: probe (fitted to its features), random, or own.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Of examples, drawn labels and the head.")]
Longest = Annotated[int, typer.Option("--max-length", min=2, help="Longest sequence in tokens.")]
Pooled = Annotated[str, typer.Option("--pooling", help="What a head sees of the body's outputs: mean or cls.")]
Bf16 = Annotated[bool, typer.Option("--bf16", help="Compute in bfloat16; its error is measured and recorded.")]
Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda; the GPU where there is one by default.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="The folder to write.")]

# Keeps the examples of statistics apart from other draws of the same seed.
_DRAWS = 0xF15E


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.command("fisher")(fisher)
    app.command("gram")(gram)


def fisher(
    model: Model,
    task: TaskName,
    out: Out,
    expected: Annotated[
        bool, typer.Option("--expected", help="All labels, as the model weighs them: default.")
    ] = False,
    sampled: Annotated[bool, typer.Option("--sampled", help="One label drawn from the model.")] = False,
    empirical: Annotated[bool, typer.Option("--empirical", help="The data's labels (FISH masks).")] = False,
    examples: Count = 1024,
    split: Split = "train",
    batch: BatchSize = 32,
    head: Head = "probe",
    max_length: Longest = 128,
    pooling: Pooled = "mean",
    seed: Seed = 0,
    bf16: Bf16 = False,
    device: Device = None,
    tasks: Tasks = None,
    as_json: Json = False,
) -> None:
    """Write the diagonal of a model's Fisher information: the mean of squared per-example gradients."""
    if expected + sampled + empirical > 1:
        raise TaskError("the options do not go together", expected="one of --expected, --sampled, --empirical")

    def measured(subject: Subject, some: Examples, progress: Progress) -> Memory:
        from ..measure.statistics.fisher import fisher

        return fisher(
            subject,
            some,
            kind="empirical" if empirical else "sampled" if sampled else "expected",
            batch_size=batch,
            seed=seed,
            precision="bf16" if bf16 else "fp32",
            split=split,
            progress=progress,
        )

    on = partial(_subject, model, task, tasks, split, examples, head, max_length, pooling, seed, device)
    _write(measured, on, out, as_json)


def gram(
    model: Model,
    task: TaskName,
    out: Out,
    examples: Count = 1024,
    split: Split = "train",
    batch: BatchSize = 32,
    head: Head = "random",  # no linear layer's input depends on it
    max_length: Longest = 128,
    pooling: Pooled = "mean",
    seed: Seed = 0,
    device: Device = None,
    tasks: Tasks = None,
    as_json: Json = False,
) -> None:
    """Write the inner products of the inputs of a model's linear layers, which regmean merges by."""

    def measured(subject: Subject, some: Examples, progress: Progress) -> Memory:
        from ..measure.statistics.gram import gram

        return gram(subject, some, batch_size=batch, seed=seed, split=split, progress=progress)

    on = partial(_subject, model, task, tasks, split, examples, head, max_length, pooling, seed, device)
    _write(measured, on, out, as_json)


def _write(
    measured: Callable[[Subject, Examples, Progress], Memory],
    on: Callable[[], tuple[Subject, Examples]],
    out: Path,
    as_json: bool,
) -> None:
    """Measure, save, and say what was saved."""
    with interruptible(), shown() as progress:
        from ..checkpoint.writer import refuse_to_replace

        refuse_to_replace(out)
        subject, some = on()
        began = time.monotonic()
        found = measured(subject, some, progress)
        _save(found, out, time.monotonic() - began, progress, as_json)


def _subject(
    model: str,
    task: str,
    tasks: Path | None,
    split: str,
    examples: int,
    head: str,
    max_length: int,
    pooling: str,
    seed: int,
    device: str | None,
) -> tuple[Subject, Examples]:
    """The model with a head on its device, and the examples that statistics are taken on.

    Raises:
        TaskError: an option is wrong.
        StudyError: the training stack is not installed.
    """
    for said, value, allowed in (
        ("--head", head, ("probe", "random", "own")),
        ("--pooling", pooling, ("mean", "cls")),
        ("--split", split, ("train", "validation", "test")),
    ):
        if value not in allowed:
            raise TaskError("no such choice", where=said, got=value, expected=", ".join(allowed))
    needs_training()
    import torch

    from ..measure.subject import open_subject
    from ..tasks import draw, open_task

    opened: Task = open_task(task, folders=task_folders(tasks))
    some = draw(opened.examples(split), examples, [_DRAWS, seed])  # type: ignore[arg-type]
    subject = open_subject(
        address.open(model),
        opened,
        head=head,  # type: ignore[arg-type]
        seed=seed,
        max_length=max_length,
        pooling=pooling,  # type: ignore[arg-type]
    )
    try:
        return subject.to(device or ("cuda" if torch.cuda.is_available() else "cpu")), some
    except (RuntimeError, AssertionError) as error:
        raise TaskError("no such device", where="--device", got=str(error).splitlines()[0][:100]) from None


def _save(found: Memory, out: Path, seconds: float, progress: Progress, as_json: bool) -> None:
    """Save statistics and say what they are."""
    from ..checkpoint import content_id
    from ..measure.statistics.record import read_record

    record = read_record(found)
    done = found.save(out, progress=progress)
    said: dict[str, Any] = {
        "path": str(out),
        "content": content_id(found),
        "examples": record.examples,
        "seconds": round(seconds, 3),
        "bytes": done.bytes,
        **record.model_dump(
            mode="json", include={"kind", "estimator", "model", "task", "precision", "error", "fallback"}
        ),
    }
    if as_json:
        print(json.dumps(said))
        return
    what = " ".join(part for part in (record.estimator, record.kind) if part)
    error = "" if record.error is None else f", error {record.error:.1e} of bf16"
    print(f"{out}: {what} of {done.tensors} tensors on {record.examples} examples in {seconds:.1f} s{error}")
