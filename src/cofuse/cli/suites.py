"""What verbs that measure on a suite share: their options, the suite, its models, where records are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import address
from ..errors import RefError, SuiteError
from ..store import Store
from ..workers import default_workers
from .tasks import tasks_folder

if TYPE_CHECKING:
    from ..checkpoint import Checkpoint
    from ..measure.evaluation.evaluating import Failure, Model
    from ..measure.evaluation.records import Records
    from ..measure.evaluation.suite import OpenSuite

SuiteName = Annotated[str, typer.Option("--suite", help="A YAML file, a folder of tasks, cold36 or model-recycling.")]
Protocols = Annotated[list[str] | None, typer.Option("--protocol", help="Only this one; may be repeated.")]
Only = Annotated[list[str] | None, typer.Option("--task", help="Only this task; may be repeated.")]
Seeds = Annotated[int | None, typer.Option("--seeds", min=1, help="So many seeds, from 0.")]
Pins = Annotated[
    list[str] | None, typer.Option("--pin", metavar="DATASET=COMMIT", help="The revision of a hub data set.")
]
Old = Annotated[str | None, typer.Option("--old", help="The model that old heads are fitted on.")]
Jobs = Annotated[int | None, typer.Option("--jobs", min=1, help="Processes; what cores and memory allow by default.")]
RecordsFolder = Annotated[
    Path | None, typer.Option("--records", help="Folder of records; the store's or the run's by default.")
]


def suite_folders(suite: str, tasks: Path | None) -> list[Path]:
    """Where the tasks are that a suite names."""
    named = tasks_folder(tasks)
    beside = Path(suite) if Path(suite).is_dir() else Path(suite).parent
    return [*([] if named is None else [named]), beside]


def opened_suite(
    suite: str,
    tasks: Path | None,
    *,
    protocols: Sequence[str] | None = None,
    only: Sequence[str] | None = None,
    seeds: int | None = None,
    pins: Sequence[str] | None = None,
    changes: Mapping[str, Any] | None = None,
) -> OpenSuite:
    """The suite that options name.

    Raises:
        SuiteError: there is no such suite, task or protocol, or a revision is not pinned.
    """
    from ..measure.evaluation.suite import open_suite, read_suite

    wanted = {**(changes or {}), **({} if seeds is None else {"seeds": list(range(seeds))})}
    read, beside = read_suite(suite, wanted)
    # A folder of tasks is looked in first: it was named by hand.
    known = suite_folders(suite, tasks)
    folders = [beside, *known] if Path(suite).is_dir() else [*known, beside]
    pinned = dict(_pin(p) for p in pins or ())
    return open_suite(read, folders, pins=pinned, protocols=protocols or (), tasks=only or ())


def _pin(text: str) -> tuple[str, str]:
    name, equals, commit = text.rpartition("=")
    if not equals:
        raise SuiteError("not a pin", got=text, expected="DATASET=COMMIT")
    return name, commit


def model_at(where: str, store: Store | None, name: str = "") -> Model:
    """A model by its address; a branch is followed once, so that all processes measure the same.

    Args:
        where: its address.
        store: the one that is looked in first, if any.
        name: what it is called; as its address when empty.
    """
    from ..measure.evaluation.evaluating import Model

    commit = ""
    if store is not None and not Path(where).exists():
        try:
            commit = store.load_commit(where).id
        except RefError:
            commit = ""
    return Model.of(name or where, partial(address.open, commit or where, cwd=Path.cwd()), commit)


def kept_records(named: Path | None, store: Store | None, folder: Path) -> Records:
    """Where records are: the folder that was named, the store, or the run's folder."""
    from ..measure.evaluation.records import FOLDER, Records

    return Records(named if named is not None else (folder if store is None else store.path) / FOLDER)


def processes(suite: OpenSuite, checkpoints: Iterable[Checkpoint]) -> int:
    """How many processes, when nobody said."""
    size = max(sum(c.spec(n).nbytes for n in c.names()) for c in checkpoints)
    return default_workers(suite.measures[0].threads, size)


def failed(failures: Sequence[Failure]) -> SuiteError:
    """What went wrong, as one error."""
    first = failures[0]
    return SuiteError(
        f"{len(failures)} of the measurements failed",
        where=f"{first.model}, {first.task}",
        got=first.error.line,
        hint=first.error.hint,
    )
