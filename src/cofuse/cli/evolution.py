"""Verbs of evolving models: evolve, report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from .. import address
from ..progress import interruptible
from .progress import shown
from .tasks import Tasks, tasks_folder
from .training import needs_training
from .weights import Sets, changes


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.command("evolve")(evolve)
    app.command("report")(report)


def evolve(
    study: Annotated[Path, typer.Argument(help="The study, a YAML file.")],
    out: Annotated[Path | None, typer.Option("--out", help="The run's folder; runs/NAME by default.")] = None,
    tasks: Tasks = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Processes; what cores and memory allow by default.")
    ] = None,
    set_: Sets = None,
) -> None:
    """Evolve a base model by ColD Fusion, beside its baselines, and write a report.

    Run the same command again to go on after an interruption.
    """
    with interruptible():
        needs_training()
        from ..evolve.run import evolve as run
        from ..evolve.study import read_study

        wanted: dict[str, Any] = changes(set_)
        named = tasks_folder(tasks)
        if named is not None:
            wanted["tasks"] = str(named.absolute())
        opened = read_study(study, wanted)
        folder = out if out is not None else Path("runs") / opened.study.name
        base = address.open(opened.study.base, cwd=opened.folder) if isinstance(opened.study.base, str) else None
        with shown() as progress:
            run(opened, folder, base, workers=workers, progress=progress)
        report(folder)


def report(run: Annotated[Path, typer.Argument(help="The folder of a run, finished or not.")]) -> None:
    """Write report.html, report.png and summary.json of a run, and print its tables."""
    from ..evolve import read_records
    from ..report import summarize, tables, write_report

    summary = summarize(records := read_records(run / "records.jsonl"))
    page = write_report(run, records, summary=summary)
    tables(summary, Console())
    print(f"report: {page.resolve()}")
