"""A gate's page, its table in a terminal, and the files of its folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .files import as_json, make, replace
from .gate_charts import charts, label
from .template import rendered
from .words import counted, score, short, signed

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from ..measure.gate.gated import Gated

WORDS: Mapping[str, str] = {"pass": "Passed", "block": "Blocked", "undecided": "Undecided"}
_STYLES = {"pass": "bold green", "block": "bold red", "undecided": "bold yellow"}
# Columns that a terminal must have before a table shows what is less needed.
_FOR_FLIPS = 90


def write_gate(folder: Path, gated: Gated) -> Path:
    """Write `records.jsonl`, `summary.json` and `report.html`; each is whole or not there.

    Args:
        folder: made where there is none.
        gated: what a gate gave.

    Returns:
        The page.

    Raises:
        CofuseError: jinja2 is not installed (the other files are written before it is needed), or the folder cannot be
            written to.
    """
    from ..measure.gate.document import document, lines

    said = document(gated)
    make(folder)
    replace(folder / "records.jsonl", "".join(_line(line) for line in lines(gated)).encode())
    replace(folder / "summary.json", as_json(said))
    page = folder / "report.html"
    replace(page, draw_gate(said).encode())
    return page


def draw_gate(said: Mapping[str, Any]) -> str:
    """The page of a gate as HTML: one file, no script, no outside request.

    Args:
        said: the gate's document, as `summary.json` holds it.

    Raises:
        CofuseError: jinja2 is not installed.
    """
    import yaml

    confidence = said["policy"]["confidence"]
    states = task_states(said)
    return rendered(
        "gate",
        "gate.css",
        heading=f"{WORDS[said['verdict']['state']]}: a candidate on {said['suite']['name']}",
        said=said,
        words=WORDS,
        spent=spent_words(said),
        states=states,
        charts=charts(said["tasks"], said["mean"], states),
        label=label,
        percent=f"{100 * confidence:g}",
        tail=50 * (1 - confidence),
        facts=_facts(said),
        yaml=yaml.safe_dump(said["policy"], sort_keys=False, allow_unicode=True),
    )


def task_states(said: Mapping[str, Any]) -> dict[tuple[str, str], str]:
    """The answer of each protocol and task to whether it lost more than it may."""
    return {(f["protocol"], f["task"]): f["state"] for f in said["verdict"]["findings"] if f["rule"] == "drop"}


def spent_words(said: Mapping[str, Any]) -> str:
    """What the gate took, and what it saved.

    >>> spent_words({"evaluation": {"rapid": True, "taken": 600, "planned": 2400, "saved": 0.75}, "tasks": []})
    'It took 600 of the 2,400 examples of the full evaluation, and saved 75 % of its cost.'
    """
    spent = said["evaluation"]
    if not spent["taken"]:
        return "Nothing was evaluated."
    if not spent["rapid"]:
        return f"It took {counted(spent['taken'], 'example')} of both models."
    return (
        f"It took {spent['taken']:,} of the {counted(spent['planned'], 'example')} of the full evaluation, "
        f"and saved {100 * spent['saved']:.0f} % of its cost."
    )


def gate_table(said: Mapping[str, Any], console: Console) -> None:
    """Print the verdict, its reasons and a row a task; flips are left out where the terminal has no room."""
    from rich.text import Text

    verdict = said["verdict"]
    if said["tasks"]:
        console.print(_table(said, console.width))
    step = f" ({verdict['step']} version)" if verdict["step"] else ""
    console.print(Text(f"{WORDS[verdict['state']]}{step}", style=_STYLES[verdict["state"]]))
    for reason in verdict["reasons"]:
        console.print(Text(f"  {reason}".replace("\N{MINUS SIGN}", "-")))
    console.print(Text(spent_words(said), style="dim"))


def _table(said: Mapping[str, Any], width: int) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("task", overflow="ellipsis", no_wrap=True)
    wide = width >= _FOR_FLIPS
    for head in ("old", "new", "difference", "may lose", *(["lost %", "won %"] if wide else []), "n", "answer"):
        table.add_column(head, justify="left" if head == "answer" else "right", no_wrap=True)
    states = task_states(said)
    for t in said["tasks"]:
        state = states.get((t["protocol"], t["task"]), "not counted")
        flips = [f"{t[side]['mean']:.2f}" if t[side] else "-" for side in ("negative", "positive")] if wide else []
        cells = [
            score(t["old"]),
            score(t["new"]),
            _interval(t["difference"]),
            f"{t['margin']:g}",
            *flips,
            f"{t['n']:,}",
        ]
        plain = [Text(cell.replace("\N{MINUS SIGN}", "-")) for cell in cells]
        table.add_row(Text(label(t)), *plain, Text(state, style=_STYLES.get(state, "")))
    return table


def _interval(found: Mapping[str, Any]) -> str:
    if found["low"] is None:
        return "-"
    return f"{signed(found['mean'])} [{signed(found['low'])}, {signed(found['high'])}]"


def _facts(said: Mapping[str, Any]) -> list[tuple[str, str]]:
    predicted = said["predicted"]
    worst = said["worst"]
    return [
        ("old model", short(said["old"])),
        ("new model", short(said["new"])),
        ("suite", f"{said['suite']['name']} {short(said['suite']['hash'])}"),
        ("seeds", ", ".join(map(str, said["suite"]["seeds"]))),
        ("worst task", "none" if worst is None else label(worst)),
        ("predicted change", "no Fisher was given" if predicted is None else f"{predicted:.4g} nats an example"),
    ]


def _line(value: Any) -> str:
    return json.dumps(value, allow_nan=False, ensure_ascii=False) + "\n"
