"""Scores with their intervals as SVG: a row a task, a dot and a bar a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from .panels import ticks

WIDTH, LEFT, RIGHT, ROW, TOP = 640, 150, 620, 13, 30
# Colours of the page, taken in turn.
_COLOURS = ("evolving", "multitask", "once", "intertraining", "pretrained")


@dataclass(frozen=True, slots=True)
class Bar:
    """One model's score on a task; `number` is the model's place, which gives its colour."""

    task: str
    model: str
    number: int
    mean: float
    low: float
    high: float


def draw_intervals(bars: Sequence[Bar], what: str, name: str) -> str:
    """The drawing; empty when there is nothing to draw.

    Args:
        bars: those of a task one after another.
        what: was measured.
        name: unique in the page.
    """
    if not bars:
        return ""
    tasks = list(dict.fromkeys(b.task for b in bars))
    models = dict.fromkeys((b.number, b.model) for b in bars)
    low, high = min(b.low for b in bars), max(b.high for b in bars)
    margin = max(0.05 * (high - low), 0.5)
    low, high = low - margin, high + margin

    def x(value: float) -> float:
        return LEFT + (RIGHT - LEFT) * (value - low) / (high - low)

    block = ROW * len(models) + 10
    bottom = TOP + block * len(tasks)
    words = "; ".join(f"{b.task}, {b.model}: {b.mean:.1f} ({b.low:.1f} to {b.high:.1f})" for b in bars)
    parts = [
        f'<svg class="chart" style="max-width: 46rem" viewBox="0 0 {WIDTH} {bottom + 28}" role="img" '
        f'aria-labelledby="{name}-title {name}-words">',
        f'<title id="{name}-title">{escape(what)}: scores with 95 % intervals</title>',
        f'<desc id="{name}-words">{escape(words)}</desc>',
    ]
    for value in ticks(low, high):
        parts.append(f'<line class="grid" x1="{x(value):.1f}" x2="{x(value):.1f}" y1="{TOP - 6}" y2="{bottom}"/>')
        parts.append(f'<text class="tick middle" x="{x(value):.1f}" y="{bottom + 17}">{value:g}</text>')
    for b in bars:
        y = TOP + block * tasks.index(b.task) + ROW * b.number + ROW / 2
        colour = f"var(--{_COLOURS[b.number % len(_COLOURS)]})"
        said = f"{b.model} on {b.task}: {b.mean:.1f} ({b.low:.1f} to {b.high:.1f})"
        parts.append(
            f'<line class="bar" style="stroke: {colour}" x1="{x(b.low):.1f}" x2="{x(b.high):.1f}" '
            f'y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        parts.append(
            f'<circle style="fill: {colour}" cx="{x(b.mean):.1f}" cy="{y:.1f}" r="4"><title>{escape(said)}</title></circle>'
        )
    for i, task in enumerate(tasks):
        y = TOP + block * i + ROW * len(models) / 2 + 4
        parts.append(f'<text class="end" x="{LEFT - 10}" y="{y:.1f}">{escape(task[:20])}</text>')
    parts.append("</svg>")
    keys = "".join(
        f'<li><span style="color: var(--{_COLOURS[number % len(_COLOURS)]})" aria-hidden="true">\N{BLACK CIRCLE}</span> '
        f"{escape(model)}</li>"
        for number, model in models
    )
    return "\n".join([*parts, f'<ul style="list-style: none; padding: 0">{keys}</ul>'])
