"""What `cofuse eval` shows: rows of `summary.json`, tables in the terminal, the page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..measure.evaluation.contamination import Overlap
from ..measure.evaluation.evaluating import Evaluated, Model
from ..measure.evaluation.records import Record, Records
from ..measure.evaluation.spread import spread
from ..measure.evaluation.suite import OpenSuite
from ..measure.intervals import interval
from .files import as_json, make, replace
from .intervals import Bar, draw_intervals
from .summary import ALL_TASKS, Row
from .template import drawn, rendered
from .words import counted, protocol_words

if TYPE_CHECKING:
    from rich.console import Console

# Rows that are named in a report of shared texts; the others are counted.
_NAMED = 20


@dataclass(frozen=True)
class Evaluation:
    """What the tables of an evaluation show.

    Attributes:
        suite: that was measured.
        models: in the order they were given.
        evaluated: their records, and what failed.
        rows: means with intervals over seeds and tasks.
        spreads: by model, task and protocol: the interval over seeds and test examples.
        overlaps: what the test splits share with a training set, where that was asked.
        against: what that training set is called.
    """

    suite: OpenSuite
    models: tuple[Model, ...]
    evaluated: Evaluated
    rows: tuple[Row, ...]
    spreads: Mapping[tuple[str, str, str], tuple[float, float]]
    overlaps: tuple[Overlap, ...] = ()
    against: str = ""

    def row(self, model: str, task: str, protocol: str) -> Row | None:
        """A mean, or None when it is not measured."""
        return next((r for r in self.rows if (r.model, r.task, r.protocol) == (model, task, protocol)), None)

    @property
    def protocols(self) -> tuple[str, ...]:
        """The suite's protocols, in its order."""
        return tuple(dict.fromkeys(m.protocol for m in self.suite.measures))

    def tasks(self, protocol: str) -> tuple[str, ...]:
        """Tasks that a protocol is for, in the suite's order."""
        return tuple(m.task.name for m in self.suite.measures if m.protocol == protocol)

    def document(self) -> dict[str, Any]:
        """What `summary.json` holds: plain values, the same for the same records."""
        spreads = [
            {"model": m, "task": t, "protocol": p, "low": low, "high": high}
            for (m, t, p), (low, high) in self.spreads.items()
        ]
        failures = [
            {"model": f.model, "task": f.task, "protocol": f.protocol, "seed": f.seed, "error": f.error.line}
            for f in self.evaluated.failures
        ]
        return {
            "what": "eval",
            "rows": [asdict(r) for r in self.rows],
            "over_examples": spreads,
            "models": [{"model": m.name, "content": m.content, "commit": m.commit} for m in self.models],
            "suite": self.suite.document(),
            "failures": failures,
            "contamination": {"against": self.against, "tasks": [_overlap(o) for o in self.overlaps]},
        }


def _overlap(found: Overlap) -> dict[str, Any]:
    said = asdict(found)
    return {**said, "counts": {key: len(said[key]) for key in ("rows", "texts", "near")}}


def summarize_evaluation(
    models: Sequence[Model],
    suite: OpenSuite,
    evaluated: Evaluated,
    records: Records,
    *,
    overlaps: Sequence[Overlap] = (),
    against: str = "",
) -> Evaluation:
    """Means and intervals of what was measured; the mean over tasks only where every task of a protocol is.

    Raises:
        CheckpointError: the outcomes of a record are damaged.
    """
    rows: list[Row] = []
    spreads = {}
    for model in models:
        done = evaluated.records.get(model.name, ())
        for protocol in dict.fromkeys(m.protocol for m in suite.measures):
            measures = [m for m in suite.measures if m.protocol == protocol]
            values: list[list[float]] = []
            for measure in measures:
                mine = [r for r in done if (r.task, r.protocol) == (measure.task.name, protocol)]
                if len(mine) < len(suite.seeds_of(measure)):
                    continue
                values.append([r.value for r in mine])
                rows.append(_row(model, suite, measure.task.name, protocol, measure.metric, [values[-1]]))
                spreads[model.name, measure.task.name, protocol] = spread([records.outcomes(r) for r in mine])
            if len(values) == len(measures) > 1:
                metrics = {m.metric for m in measures}
                metric = metrics.pop() if len(metrics) == 1 else "mixed"
                rows.append(_row(model, suite, ALL_TASKS, protocol, metric, values))
    return Evaluation(suite, tuple(models), evaluated, tuple(rows), spreads, tuple(overlaps), against)


def _row(
    model: Model, suite: OpenSuite, task: str, protocol: str, metric: str, values: Sequence[Sequence[float]]
) -> Row:
    seeds = max(map(len, values))
    # What seeds do not change counts for each of them.
    array = np.array([[*v] if len(v) == seeds else [*v] * seeds for v in values])[:, :, None]  # [task, seed, draw]
    found = interval(array)
    return Row(model.name, model.commit, suite.name, task, protocol, metric, found.mean, found.low, found.high, found.n)


def write_evaluation(folder: Path, found: Evaluation) -> Path:
    """Write `records.jsonl`, `summary.json` and `report.html`; each is whole or not there.

    Raises:
        CofuseError: jinja2 is not installed (the other files are written before), or the folder cannot be written to.
    """
    make(folder)
    kept = dict.fromkeys(r for records in found.evaluated.records.values() for r in map(_line, records))
    replace(folder / "records.jsonl", "".join(f"{line}\n" for line in kept).encode())
    replace(folder / "summary.json", as_json(found.document()))
    page = folder / "report.html"
    replace(page, _page(found).encode())
    return page


def _line(record: Record) -> str:
    return record.model_dump_json()


def _page(found: Evaluation) -> str:
    records = [r for records in found.evaluated.records.values() for r in records]
    return rendered(
        "evaluation",
        found=found,
        suite=found.suite,
        charts=[
            (p, drawn(draw_intervals(_bars(found, p), protocol_words(p), f"chart-{i}")))
            for i, p in enumerate(found.protocols)
        ],
        words=protocol_words,
        counted=counted,
        all_tasks=ALL_TASKS,
        records=records,
        seconds=sum(r.seconds for r in records),
        versions=records[0].versions if records else {},
        settings={m.protocol: json.dumps(m.document()["settings"]) for m in found.suite.measures},
        tested={(r.task, r.protocol): r.tested for r in records},
        named=_NAMED,
    )


def _bars(found: Evaluation, protocol: str) -> list[Bar]:
    bars = []
    for task in found.tasks(protocol):
        for number, model in enumerate(found.models):
            row = found.row(model.name, task, protocol)
            if row is not None:
                low, high = found.spreads[model.name, task, protocol]
                bars.append(Bar(task, model.name, number, row.mean, low, high))
    return bars


def evaluation_tables(found: Evaluation, console: Console) -> None:
    """Print a table a protocol: one row a task, the mean last; then what failed and what is shared."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    for protocol in found.protocols:
        tasks = found.tasks(protocol)
        named = [*tasks, ALL_TASKS] if len(tasks) > 1 else list(tasks)
        metrics = sorted({m.metric for m in found.suite.measures if m.protocol == protocol})
        title = f"{found.suite.name}: {protocol_words(protocol)} ({', '.join(metrics)})"
        table = Table(title=Text(title, style="bold"), title_justify="left", box=box.SIMPLE)
        table.add_column("task", no_wrap=True, overflow="ellipsis")
        for model in found.models:
            table.add_column(Text(model.name), justify="right", overflow="fold")
        for task in named:
            if task == ALL_TASKS:
                table.add_section()
            cells = [Text(_cell(found, model.name, task, protocol)) for model in found.models]
            table.add_row(Text("mean" if task == ALL_TASKS else task), *cells)
        console.print(table)
    seeds = ", ".join(map(str, found.suite.seeds))
    console.print(
        Text(
            f"95 % intervals: over seeds ({seeds}) and test examples; of a mean, over seeds and tasks.\n"
            f"Suite {found.suite.hash[:16]}: scores of another suite hash cannot be compared with these.",
            style="dim",
        )
    )
    for failure in found.evaluated.failures:
        console.print(Text(f"failed: {failure.model}, {failure.task}, {failure.protocol}: {failure.error.line}"))
    contamination_table(found.overlaps, found.against, console)


def _cell(found: Evaluation, model: str, task: str, protocol: str) -> str:
    row = found.row(model, task, protocol)
    if row is None:
        return "-"
    low, high = found.spreads.get((model, task, protocol), (row.low, row.high))
    digits = 1 if row.metric.startswith(("acc", "macro", "matthews", "pearson", "spearman", "mixed")) else 3
    return f"{row.mean:.{digits}f}" + ("" if low == high else f" [{low:.{digits}f}, {high:.{digits}f}]")


def contamination_table(overlaps: Sequence[Overlap], against: str, console: Console) -> None:
    """Print what test splits share with a training set."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    if not overlaps:
        return
    title = f"Test texts that stand in {against} ({counted(overlaps[0].trained, 'row')})"
    table = Table(title=Text(title, style="bold"), title_justify="left", box=box.SIMPLE)
    table.add_column("task")
    for head in ("test rows", "whole rows shared", "texts shared", "near"):
        table.add_column(head, justify="right")
    table.add_column("rows of the test split", overflow="fold")
    for o in overlaps:
        firsts = ", ".join(str(row) for row, _ in o.texts[:8]) + (" ..." if len(o.texts) > 8 else "")
        table.add_row(Text(o.task), *map(str, (o.tested, len(o.rows), len(o.texts), len(o.near))), firsts or "-")
    console.print(table)
