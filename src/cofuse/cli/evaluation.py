"""The verb that measures models: eval."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from ..errors import SuiteError
from ..progress import Progress, interruptible
from ..store import Store
from .caches import cache_folder
from .progress import shown
from .suites import (
    Jobs,
    Old,
    Only,
    Pins,
    Protocols,
    Seeds,
    failed,
    kept_records,
    model_at,
    opened_suite,
    processes,
    suite_folders,
)
from .tasks import Tasks
from .training import needs_training
from .weights import Json, Sets, changes

if TYPE_CHECKING:
    from ..measure.evaluation.contamination import Overlap, Row
    from ..measure.evaluation.suite import OpenSuite


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command("eval")(evaluate)


def evaluate(
    models: Annotated[list[str] | None, typer.Argument(metavar="MODEL...", help="Addresses of models.")] = None,
    suite: Annotated[
        str, typer.Option("--suite", help="A YAML file, a folder of tasks, cold36 or model-recycling.")
    ] = "",
    tasks: Tasks = None,
    protocol: Protocols = None,
    task: Only = None,
    seeds: Seeds = None,
    old: Old = None,
    against: Annotated[
        str | None,
        typer.Option("--against", help="Look for test texts in this training set: a task, .parquet, .jsonl or .txt."),
    ] = None,
    near: Annotated[
        int | None, typer.Option("--near", min=2, help="With --against: also rows that share runs of so many words.")
    ] = None,
    pin: Pins = None,
    harness: Annotated[
        list[str] | None, typer.Option("--harness", help="A task of lm-evaluation-harness; may be repeated.")
    ] = None,
    set_: Sets = None,
    jobs: Jobs = None,
    out: Annotated[Path | None, typer.Option("--out", help="The run's folder; runs/eval-SUITE by default.")] = None,
    as_json: Json = False,
) -> None:
    """Measure models on a suite of tasks, and write a report.

    What has been measured is never measured again: the same command goes on after an interruption.
    """
    addresses = models or []
    if bool(suite) == bool(harness):
        raise SuiteError("say what to measure on", expected="--suite or --harness, one of them")
    if not addresses and against is None:
        raise SuiteError("no model to measure", hint="give its address; or --against TRAIN, to look for shared texts")
    with interruptible():
        needs_training()
        if harness:
            _harness(addresses, harness, out, as_json)
            return
        found = opened_suite(suite, tasks, protocols=protocol, only=task, seeds=seeds, pins=pin, changes=changes(set_))
        folder = out if out is not None else Path("runs") / f"eval-{found.name}"
        _check_folder(folder, found)
        with shown() as progress:
            _run(addresses, found, folder, suite_folders(suite, tasks), old, against, near, jobs, as_json, progress)


def _check_folder(folder: Path, suite: OpenSuite) -> None:
    """Refuse a folder with scores of another suite, which would stand beside these as if they could be compared."""
    from ..measure.evaluation.suite import differences

    try:
        before = json.loads((folder / "summary.json").read_bytes())["suite"]
        said = differences(before, suite.document())
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return
    if said:
        raise SuiteError(
            "the folder holds scores of another suite, which cannot be compared with these",
            where=folder,
            got="; ".join(said[:5]) + (f"; and {len(said) - 5} more" if len(said) > 5 else ""),
            expected=f"suite {before['hash'][:16]}, not {suite.hash[:16]}",
            hint="another --out",
        )


def _run(
    addresses: Sequence[str],
    suite: OpenSuite,
    folder: Path,
    folders: Sequence[Path],
    old: str | None,
    against: str | None,
    near: int | None,
    jobs: int | None,
    as_json: bool,
    progress: Progress,
) -> None:
    from ..measure.evaluation.evaluating import Evaluated
    from ..measure.evaluation.evaluating import evaluate as run
    from ..report.evaluation import evaluation_tables, summarize_evaluation, write_evaluation

    overlaps = [] if against is None else _overlaps(suite, against, near, folders)
    store = Store.find(Path.cwd())
    records = kept_records(None, store, folder)
    opened = [model_at(a, store) for a in addresses]
    evaluated = Evaluated({}, (), 0)
    if opened:
        evaluated = run(
            opened,
            suite,
            records,
            old=None if old is None else model_at(old, store),
            jobs=jobs or processes(suite, [m.open() for m in opened]),
            cache=cache_folder() / "features",
            progress=progress,
        )
    found = summarize_evaluation(opened, suite, evaluated, records, overlaps=overlaps, against=against or "")
    page = write_evaluation(folder, found)
    if as_json:
        print(json.dumps(found.document()))
    else:
        evaluation_tables(found, Console())
        print(f"{evaluated.made} measured now; records: {records.folder}\nreport: {page.resolve()}")
    if evaluated.failures:
        raise failed(evaluated.failures)


def _overlaps(suite: OpenSuite, against: str, near: int | None, folders: Sequence[Path]) -> list[Overlap]:
    from ..measure.evaluation.contamination import contamination, file_rows, task_rows
    from ..tasks import open_task

    path = Path(against)
    train: Any = None
    if not path.is_file() or path.suffix in (".yaml", ".yml"):
        train = task_rows(open_task(against, folders=(Path(), *folders)), "train")
    found = []
    for task in suite.tasks:
        if "text" in task.what.columns:
            rows: Any = file_rows(path) if train is None else train
            test: list[Row] = task_rows(task)
            found.append(contamination(rows, test, task=task.name, ngrams=near))
    if not found:
        raise SuiteError("the suite has no texts to look for", where=suite.name)
    return found


def _harness(addresses: Sequence[str], names: Sequence[str], out: Path | None, as_json: bool) -> None:
    from ..measure.evaluation.harness import harness

    store = Store.find(Path.cwd())
    folder = out if out is not None else Path("runs") / "eval-harness"
    records = kept_records(None, store, folder)
    for name in addresses:
        scratch = Path(tempfile.mkdtemp(prefix="cofuse-harness-"))
        try:
            for record in harness(model_at(name, store), names, records, scratch / "model"):
                said = f"{name}  {record.task}  {record.metric} {record.value:.2f}  ({record.tested} examples)"
                print(record.model_dump_json() if as_json else said)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
