"""The tables of a run in a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .scores import FUSE_ONCE, INTERTRAIN_MEAN, MULTITASK, PRETRAINED, SUITES
from .summary import ALL_TASKS, Summary
from .words import counted, protocol_words, score, setting_words, signed

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

# Columns that a terminal must have before a table shows what is less needed.
_FOR_BASELINES, _FOR_INTERVALS = 96, 62
_BASELINES = ((MULTITASK, "multitask"), (FUSE_ONCE, "fuse once"), (INTERTRAIN_MEAN, "intertrain\nmean"))


def tables(summary: Summary, console: Console) -> None:
    """Print a table for each protocol and suite: one row a task, the mean last.

    What a narrow terminal has no room for is left out: baselines first, then intervals.

    Args:
        summary: what is shown.
        console: where.
    """
    from rich.text import Text

    shown = [(suite, p) for suite in SUITES for p in summary.scores.protocols(suite)]
    for suite, protocol in shown:
        console.print(_table(summary, suite, protocol, console.width))
    if not shown:
        console.print("nothing is measured yet")
        return
    note = "Scores in percent. Differences in points, with 95 % intervals; bold: the interval does not include zero."
    console.print(Text(note, style="dim"))
    if left := summary.scores.unfinished:
        console.print(Text(f"{counted(left, 'measurement')} not finished: their seeds are left out.", style="yellow"))


def _table(summary: Summary, suite: str, protocol: str, width: int) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    scores = summary.scores
    last = scores.last(suite, protocol)
    setting = setting_words(scores.study, suite, protocol)
    title = f"{suite}: {protocol_words(protocol)}" + (f" ({setting})" if setting else "")
    baselines = [b for b in _BASELINES if width >= _FOR_BASELINES and summary.row(b[0], suite, ALL_TASKS, protocol)]
    heads = ["pretrained", *([last, "difference"] if last else []), *(label for _, label in baselines)]
    tasks = scores.suites[suite]
    rows: list[tuple[str, list[Text]]] = []
    for task in (*tasks, ALL_TASKS) if len(tasks) > 1 else tasks:
        cells = [_score(summary, PRETRAINED, suite, task, protocol)]
        if last:
            cells.append(_score(summary, last, suite, task, protocol))
            cells.append(_difference(summary, last, suite, task, protocol, width >= _FOR_INTERVALS))
        rows.append((task, cells + [_score(summary, model, suite, task, protocol) for model, _ in baselines]))
    gap = 3 if width >= _FOR_INTERVALS else 2
    widths = [max(*map(len, head.split("\n")), *(len(cells[i]) for _, cells in rows)) for i, head in enumerate(heads)]
    # The name of a task gives way, numbers do not.
    name = max(8, width - sum(widths) - gap * (len(widths) + 1))
    table = Table(title=Text(title, style="bold"), title_justify="left", box=box.SIMPLE, padding=(0, gap - 1, 0, 0))
    table.add_column("task", overflow="ellipsis", no_wrap=True, max_width=name)
    for head, numbers in zip(heads, widths, strict=True):
        table.add_column(head, justify="right", no_wrap=True, min_width=numbers)
    for task, cells in rows:
        if task == ALL_TASKS:
            table.add_section()
        table.add_row(Text("mean" if task == ALL_TASKS else task), *cells)
    return table


def _score(summary: Summary, model: str, suite: str, task: str, protocol: str) -> Text:
    from rich.text import Text

    row = summary.row(model, suite, task, protocol)
    return Text("-" if row is None else score(row.mean).replace("\N{MINUS SIGN}", "-"))


def _difference(summary: Summary, model: str, suite: str, task: str, protocol: str, intervals: bool) -> Text:
    from rich.text import Text

    found = summary.difference(model, PRETRAINED, suite, task, protocol)
    if found is None:
        return Text("-")
    said = signed(found.mean) + (
        f" [{signed(found.low)}, {signed(found.high)}]" if intervals and not found.bare else ""
    )
    # Not every terminal and log has a minus sign of its own.
    return Text(
        said.replace("\N{MINUS SIGN}", "-"),
        style=("bold green" if found.low > 0 else "bold red") if found.clear else "",
    )
