"""The verb that measures models: eval."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from .. import address
from ..errors import RefError, SuiteError
from ..progress import Progress, interruptible
from ..store import Store
from ..workers import default_workers
from .caches import cache_folder
from .evolution import _needs_training
from .progress import shown
from .weights import Json, Sets, changes

if TYPE_CHECKING:
    from ..measure.contamination import Overlap, Row
    from ..measure.evaluating import Model
    from ..measure.suite import OpenSuite


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command("eval")(evaluate)


def evaluate(
    models: Annotated[list[str] | None, typer.Argument(metavar="MODEL...", help="Addresses of models.")] = None,
    suite: Annotated[
        str, typer.Option("--suite", help="A YAML file, a folder of tasks, cold36 or model-recycling.")
    ] = "",
    tasks: Annotated[
        Path | None, typer.Option("--tasks", help="Folder of tasks that the suite names; COFUSE_TASKS by default.")
    ] = None,
    protocol: Annotated[list[str] | None, typer.Option("--protocol", help="Only this one; may be repeated.")] = None,
    task: Annotated[list[str] | None, typer.Option("--task", help="Only this task; may be repeated.")] = None,
    seeds: Annotated[int | None, typer.Option("--seeds", min=1, help="So many seeds, from 0.")] = None,
    old: Annotated[str | None, typer.Option("--old", help="The model that old heads are fitted on.")] = None,
    against: Annotated[
        str | None,
        typer.Option("--against", help="Look for test texts in this training set: a task, .parquet, .jsonl or .txt."),
    ] = None,
    near: Annotated[
        int | None, typer.Option("--near", min=2, help="With --against: also rows that share runs of so many words.")
    ] = None,
    pin: Annotated[
        list[str] | None, typer.Option("--pin", metavar="DATASET=COMMIT", help="The revision of a hub data set.")
    ] = None,
    harness: Annotated[
        list[str] | None, typer.Option("--harness", help="A task of lm-evaluation-harness; may be repeated.")
    ] = None,
    set_: Sets = None,
    jobs: Annotated[
        int | None, typer.Option("--jobs", min=1, help="Processes; what cores and memory allow by default.")
    ] = None,
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
        _needs_training()
        if harness:
            _harness(addresses, harness, out, as_json)
            return
        found = _open(suite, tasks, protocol, task, seeds, pin, changes(set_))
        folder = out if out is not None else Path("runs") / f"eval-{found.name}"
        _check_folder(folder, found)
        with shown() as progress:
            _run(addresses, found, folder, _folders(suite, tasks), old, against, near, jobs, as_json, progress)


def _folders(suite: str, tasks: Path | None) -> list[Path]:
    named = tasks if tasks is not None else os.environ.get("COFUSE_TASKS")
    beside = Path(suite) if Path(suite).is_dir() else Path(suite).parent
    return [*([Path(named)] if named else []), beside]


def _open(
    suite: str,
    tasks: Path | None,
    protocol: list[str] | None,
    task: list[str] | None,
    seeds: int | None,
    pin: list[str] | None,
    wanted: dict[str, Any],
) -> OpenSuite:
    from ..measure.suite import open_suite, read_suite

    if seeds is not None:
        wanted["seeds"] = list(range(seeds))
    read, beside = read_suite(suite, wanted)
    pins = dict(_pair(p) for p in pin or [])
    # A folder of tasks is looked in first: it was named by hand.
    folders = [beside, *_folders(suite, tasks)] if Path(suite).is_dir() else [*_folders(suite, tasks), beside]
    return open_suite(read, folders, pins=pins, protocols=protocol or (), tasks=task or ())


def _pair(text: str) -> tuple[str, str]:
    name, equals, commit = text.rpartition("=")
    if not equals:
        raise SuiteError("not a pin", got=text, expected="DATASET=COMMIT")
    return name, commit


def _check_folder(folder: Path, suite: OpenSuite) -> None:
    """Refuse a folder with scores of another suite, which would stand beside these as if they could be compared."""
    from ..measure.suite import differences

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
    from ..measure.evaluating import Evaluated
    from ..measure.evaluating import evaluate as run
    from ..measure.records import FOLDER, Records
    from ..report.evaluation import evaluation_tables, summarize_evaluation, write_evaluation

    overlaps = [] if against is None else _overlaps(suite, against, near, folders)
    store = Store.find(Path.cwd())
    records = Records((folder if store is None else store.path) / FOLDER)
    opened = [_model(a, store) for a in addresses]
    evaluated = Evaluated({}, (), 0)
    if opened:
        size = max(sum(c.spec(n).nbytes for n in c.names()) for c in [m.open() for m in opened])
        evaluated = run(
            opened,
            suite,
            records,
            old=None if old is None else _model(old, store),
            jobs=jobs or default_workers(suite.measures[0].threads, size),
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
        first = evaluated.failures[0].error
        raise SuiteError(
            f"{len(evaluated.failures)} of the measurements failed",
            where=f"{evaluated.failures[0].model}, {evaluated.failures[0].task}",
            got=first.line,
            hint=first.hint,
        )


def _model(name: str, store: Store | None) -> Model:
    """A model by its address; a branch is followed once, so that all processes measure the same."""
    from ..measure.evaluating import Model

    commit = ""
    if store is not None and not Path(name).exists():
        try:
            commit = store.load_commit(name).id
        except RefError:
            commit = ""
    return Model.of(name, partial(address.open, commit or name, cwd=Path.cwd()), commit)


def _overlaps(suite: OpenSuite, against: str, near: int | None, folders: Sequence[Path]) -> list[Overlap]:
    from ..measure.contamination import contamination, file_rows, task_rows
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
    from ..measure.harness import harness
    from ..measure.records import FOLDER, Records

    store = Store.find(Path.cwd())
    folder = out if out is not None else Path("runs") / "eval-harness"
    records = Records((folder if store is None else store.path) / FOLDER)
    for name in addresses:
        scratch = Path(tempfile.mkdtemp(prefix="cofuse-harness-"))
        try:
            for record in harness(_model(name, store), names, records, scratch / "model"):
                said = f"{name}  {record.task}  {record.metric} {record.value:.2f}  ({record.tested} examples)"
                print(record.model_dump_json() if as_json else said)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
