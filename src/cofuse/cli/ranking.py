"""The verb that ranks base models: rank."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from ..errors import CofuseError, SuiteError
from ..progress import interruptible
from ..store import Store
from ..workers import default_workers
from .caches import cache_folder
from .evaluation import _model, _open
from .evolution import _needs_training
from .progress import shown
from .weights import Json, Sets, changes

if TYPE_CHECKING:
    from ..checkpoint import Checkpoint
    from ..measure.evaluating import Failure
    from ..measure.records import Records
    from ..measure.suite import OpenSuite

SuiteName = Annotated[str, typer.Option("--suite", help="A YAML file, a folder of tasks, cold36 or model-recycling.")]
Tasks = Annotated[Path | None, typer.Option("--tasks", help="Folder of tasks; COFUSE_TASKS by default.")]
Protocols = Annotated[list[str] | None, typer.Option("--protocol", help="Only this one; may be repeated.")]
Only = Annotated[list[str] | None, typer.Option("--task", help="Only this task; may be repeated.")]
Seeds = Annotated[int | None, typer.Option("--seeds", min=1, help="So many seeds, from 0.")]
Pins = Annotated[list[str] | None, typer.Option("--pin", metavar="DATASET=COMMIT", help="Revision of a hub data set.")]
Jobs = Annotated[int | None, typer.Option("--jobs", min=1, help="Processes; what cores and memory allow by default.")]
RecordsFolder = Annotated[
    Path | None, typer.Option("--records", help="Folder of records; the store's or the run's by default.")
]


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command("rank")(rank)


def rank(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Base models to rank.")],
    suite: SuiteName,
    pretrained: Annotated[
        list[str], typer.Option("--pretrained", help="The pretrained model of an architecture; may be repeated.")
    ],
    tasks: Tasks = None,
    protocol: Protocols = None,
    task: Only = None,
    seeds: Seeds = None,
    pin: Pins = None,
    set_: Sets = None,
    jobs: Jobs = None,
    out: Annotated[Path | None, typer.Option("--out", help="The run's folder; runs/rank-SUITE by default.")] = None,
    records: RecordsFolder = None,
    as_json: Json = False,
) -> None:
    """Rank base models by their gain over the pretrained model of the same architecture.

    With --protocol probe and few tasks it is cheap; how well that tells the ranking by full finetuning is said as soon as
    both are known.
    """
    with interruptible():
        _needs_training()
        from ..measure.agreement import agreements
        from ..measure.evaluating import evaluate
        from ..measure.ranking import entries
        from ..measure.ranking import rank as ranked
        from ..report.ranking import Rankings, ranking_tables, write_rankings

        asked = _without_old_heads(_open(suite, tasks, protocol, task, seeds, pin, changes(set_)))
        folder = out if out is not None else Path("runs") / f"rank-{asked.name}"
        store = Store.find(Path.cwd())
        kept = kept_records(records, store, folder)
        every = {name: _model(name, store) for name in dict.fromkeys((*models, *pretrained))}
        opened = {name: model.open() for name, model in every.items()}
        entered = entries([every[m] for m in _once(models)], [every[p] for p in dict.fromkeys(pretrained)], opened)
        with shown() as progress:
            evaluated = evaluate(
                list(every.values()),
                asked,
                kept,
                jobs=jobs or processes(asked, opened.values()),
                cache=cache_folder() / "features",
                progress=progress,
            )
        rankings = ranked(entered, asked, kept)
        if not rankings:
            raise failed(evaluated.failures)
        wanted = {p: i for i, p in enumerate(protocol or ())}
        first = sorted(rankings, key=lambda r: wanted.get(r.protocol, 0))
        known = {(r.protocol, r.tasks) for r in first}
        others = ranked(entered, _whole(suite, tasks, seeds, pin, changes(set_), asked), kept)
        shown_ones = (*first, *(r for r in others if (r.protocol, r.tasks) not in known))
        found = Rankings(asked, shown_ones, agreements(shown_ones))
        page = write_rankings(folder, found)
        if as_json:
            print(json.dumps(found.document()))
        else:
            ranking_tables(found, Console())
            print(f"{evaluated.made} measured now; records: {kept.folder}\nreport: {page.resolve()}")
        if evaluated.failures:
            raise failed(evaluated.failures)


def _once(models: Sequence[str]) -> list[str]:
    twice = sorted({m for m in models if models.count(m) > 1})
    if twice:
        raise SuiteError("a model stands twice", got=", ".join(twice))
    return list(models)


def _without_old_heads(suite: OpenSuite) -> OpenSuite:
    """Old heads rank nothing: they are fitted on another model."""
    kept = tuple(m for m in suite.measures if m.protocol != "oldhead")
    if not kept:
        raise SuiteError("old heads rank nothing", where=suite.name, hint="--protocol probe or finetune")
    return replace(suite, measures=kept)


def _whole(
    suite: str, tasks: Path | None, seeds: int | None, pin: list[str] | None, wanted: dict[str, Any], asked: OpenSuite
) -> OpenSuite:
    """All of the suite, whose other scores may be known from before; what was asked where it cannot be opened."""
    try:
        return _open(suite, tasks, None, None, seeds, pin, wanted)
    except CofuseError:  # a task elsewhere, or not pinned: nothing of it has been measured
        return asked


def kept_records(named: Path | None, store: Store | None, folder: Path) -> Records:
    """Where records are: the folder that was named, the store, or the run's folder."""
    from ..measure.records import FOLDER, Records

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
