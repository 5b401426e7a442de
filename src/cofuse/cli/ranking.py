"""The verb that ranks base models: rank."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from ..errors import CofuseError, SuiteError
from ..progress import interruptible
from ..store import Store
from .caches import cache_folder
from .progress import shown
from .suites import (
    Jobs,
    Only,
    Pins,
    Protocols,
    RecordsFolder,
    Seeds,
    SuiteName,
    failed,
    kept_records,
    model_at,
    opened_suite,
    processes,
)
from .tasks import Tasks
from .training import needs_training
from .weights import Json, Sets, changes

if TYPE_CHECKING:
    from ..measure.evaluation.suite import OpenSuite


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
        needs_training()
        from ..measure.evaluation.evaluating import evaluate
        from ..measure.ranking.agreement import agreements
        from ..measure.ranking.ranking import entries
        from ..measure.ranking.ranking import rank as ranked
        from ..report.ranking import Rankings, ranking_tables, write_rankings

        said: dict[str, Any] = {"seeds": seeds, "pins": pin, "changes": changes(set_)}
        asked = _without_old_heads(opened_suite(suite, tasks, protocols=protocol, only=task, **said))
        folder = out if out is not None else Path("runs") / f"rank-{asked.name}"
        store = Store.find(Path.cwd())
        kept = kept_records(records, store, folder)
        every = {name: model_at(name, store) for name in dict.fromkeys((*models, *pretrained))}
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
        others = ranked(entered, _whole(suite, tasks, said, asked), kept)
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


def _whole(suite: str, tasks: Path | None, said: Mapping[str, Any], asked: OpenSuite) -> OpenSuite:
    """All of the suite, whose other scores may be known from before; what was asked where it cannot be opened."""
    try:
        return opened_suite(suite, tasks, **said)
    except CofuseError:  # a task elsewhere, or not pinned: nothing of it has been measured
        return asked
