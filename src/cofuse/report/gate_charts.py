"""The pictures of a gate as SVG inside the page: differences with their margins, and flips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from .panels import ticks
from .words import signed

# In units of the drawing, about a pixel of a phone.
WIDTH, LEFT, RIGHT, TOP, ROW = 640, 168, 620, 26, 26
_NAME = 22  # letters of a task's name that have room

Task = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Chart:
    """One picture: its name in the page's ids, what it is called, and the drawing."""

    name: str
    caption: str
    drawing: str


@dataclass(frozen=True, slots=True)
class _Frame:
    """The place of values and rows in a drawing."""

    low: float
    high: float
    rows: int

    def x(self, value: float) -> float:
        return LEFT + (RIGHT - LEFT) * (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)

    def y(self, row: int) -> float:
        return TOP + ROW * (row + 0.5)

    @property
    def bottom(self) -> float:
        return TOP + ROW * self.rows


def charts(tasks: Sequence[Task], mean: Mapping[str, Any], states: Mapping[tuple[str, str], str]) -> list[Chart]:
    """The pictures of a gate.

    Args:
        tasks: as in its document.
        mean: the mean difference, with its interval.
        states: `pass`, `undecided` or `block` of each protocol and task.
    """
    found = []
    points = [t for t in tasks if t["difference"]["low"] is not None]
    if points:
        drawing = _differences(points, mean, states)
        found.append(Chart("differences", "New minus old, with its interval and the margin", drawing))
    flipped = [t for t in tasks if t["negative"] is not None]
    if flipped:
        found.append(Chart("flips", "Examples that flipped", _flips(flipped)))
    return found


def label(task: Task) -> str:
    """What a task is called in a row: with its protocol, where that is not the gate's own.

    >>> label({"task": "sst2", "protocol": "oldhead"}), label({"task": "sst2", "protocol": "finetune"})
    ('sst2', 'sst2, finetune')
    """
    return str(task["task"] if task["protocol"] == "oldhead" else f"{task['task']}, {task['protocol']}")


def _differences(tasks: Sequence[Task], mean: Mapping[str, Any], states: Mapping[tuple[str, str], str]) -> str:
    rows: list[tuple[str, Mapping[str, Any], float | None, str]] = [
        (label(t), t["difference"], t["margin"], states.get((t["protocol"], t["task"]), "level")) for t in tasks
    ]
    if len(tasks) > 1 and mean["low"] is not None:
        rows.append(("mean", mean, None, "total"))
    values = [v for _, d, m, _ in rows for v in (d["low"], d["high"], -(m or 0.0))]
    room = 0.04 * (max(values) - min(values)) + 0.05
    frame = _Frame(min(*values, 0.0) - room, max(*values, 0.0) + room, len(rows))
    said = "; ".join(
        f"{name}: {signed(d['mean'])} ({signed(d['low'])} to {signed(d['high'])})"
        + ("" if m is None else f", may lose {m:g}")
        for name, d, m, _ in rows
    )
    parts = _open("differences", "New minus old in points, by task", said, frame)
    parts += _axis(frame, "points")
    zero = f"{frame.x(0):.1f}"
    parts.append(f'<line class="zero" x1="{zero}" x2="{zero}" y1="{TOP}" y2="{frame.bottom:.1f}"/>')
    for i, (name, d, margin, state) in enumerate(rows):
        y = frame.y(i)
        parts.append(_name(name, y))
        if margin is not None:
            at = f"{frame.x(-margin):.1f}"
            parts.append(f'<line class="margin" x1="{at}" x2="{at}" y1="{y - 11:.1f}" y2="{y + 11:.1f}"/>')
        low, high = frame.x(d["low"]), frame.x(d["high"])
        parts.append(f'<line class="bar {state}" x1="{low:.1f}" x2="{high:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
        words = escape(f"{name}: {signed(d['mean'])} ({signed(d['low'])} to {signed(d['high'])})")
        parts.append(
            f'<circle class="{state}" cx="{frame.x(d["mean"]):.1f}" cy="{y:.1f}" r="4.5"><title>{words}</title></circle>'
        )
    return "\n".join([*parts, "</svg>"])


def _flips(tasks: Sequence[Task]) -> str:
    most = max([max(t["negative"]["high"], t["positive"]["high"]) for t in tasks] + [0.1])
    frame = _Frame(-1.05 * most, 1.05 * most, len(tasks))
    said = "; ".join(
        f"{label(t)}: {t['negative']['mean']:.2f} % right before and wrong now, {t['positive']['mean']:.2f} % the converse"
        for t in tasks
    )
    parts = _open("flips", "Share of examples that flipped, by task", said, frame)
    parts += _axis(frame, "percent of examples: wrong now to the left, right now to the right", absolute=True)
    zero = frame.x(0)
    for i, t in enumerate(tasks):
        y = frame.y(i)
        parts.append(_name(label(t), y))
        for side, sign in (("negative", -1), ("positive", 1)):
            rate = t[side]
            end = frame.x(sign * rate["mean"])
            left, width = min(zero, end), abs(end - zero)
            words = escape(f"{label(t)}: {rate['mean']:.2f} % ({rate['low']:.2f} to {rate['high']:.2f})")
            parts.append(
                f'<rect class="{side}" x="{left:.1f}" y="{y - 8:.1f}" width="{width:.1f}" height="16">'
                f"<title>{words}</title></rect>"
            )
            ends = sorted((frame.x(sign * rate["low"]), frame.x(sign * rate["high"])))
            parts.append(f'<line class="whisker" x1="{ends[0]:.1f}" x2="{ends[1]:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
    parts.append(f'<line class="zero" x1="{zero:.1f}" x2="{zero:.1f}" y1="{TOP}" y2="{frame.bottom:.1f}"/>')
    return "\n".join([*parts, "</svg>"])


def _open(name: str, title: str, words: str, frame: _Frame) -> list[str]:
    return [
        f'<svg class="chart wide" viewBox="0 0 {WIDTH} {frame.bottom + 44:.0f}" role="img" '
        f'aria-labelledby="{name}-title {name}-words">',
        f'<title id="{name}-title">{escape(title)}</title>',
        f'<desc id="{name}-words">{escape(words)}</desc>',
    ]


def _axis(frame: _Frame, unit: str, *, absolute: bool = False) -> list[str]:
    parts = []
    for value in ticks(frame.low, frame.high, 7):
        x = f"{frame.x(value):.1f}"
        parts.append(f'<line class="grid" x1="{x}" x2="{x}" y1="{TOP}" y2="{frame.bottom:.1f}"/>')
        text = f"{abs(value) if absolute else value:g}".replace("-", "\N{MINUS SIGN}")
        parts.append(f'<text class="tick middle" x="{x}" y="{frame.bottom + 16:.1f}">{text}</text>')
    middle = (LEFT + RIGHT) / 2
    parts.append(f'<text class="tick middle" x="{middle:.1f}" y="{frame.bottom + 35:.1f}">{escape(unit)}</text>')
    return parts


def _name(name: str, y: float) -> str:
    short = name if len(name) <= _NAME else name[: _NAME - 1] + "\N{HORIZONTAL ELLIPSIS}"
    return f'<text class="end" x="{LEFT - 8}" y="{y + 4:.1f}">{escape(short)}</text>'
