"""Scores of releases from the best down: a dot and its interval each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from markupsafe import Markup

from ....report.panels import ticks
from ...database import Release, Repository
from .svg import cut, dot, figure, line, opened, text

WIDTH, LEFT, RIGHT, TOP, ROW = 440, 156, 428, 8, 24
_NAME = 22  # letters that have room


class Row(Protocol):
    """What is drawn of one."""

    @property
    def repository(self) -> Repository: ...
    @property
    def release(self) -> Release: ...
    @property
    def mean(self) -> float: ...
    @property
    def low(self) -> float | None: ...
    @property
    def high(self) -> float | None: ...


def draw_ranked(rows: Sequence[Row], name: str) -> Markup:
    """The drawing."""
    if not rows:
        return Markup("")
    ends = [(r.mean if r.low is None else r.low, r.mean if r.high is None else r.high) for r in rows]
    low, high = min(a for a, _ in ends), max(b for _, b in ends)
    room = max(0.05 * (high - low), 0.5)
    low, high = low - room, high + room

    def x(value: float) -> float:
        return LEFT + (RIGHT - LEFT) * (value - low) / (high - low)

    named = [f"{r.repository.full_name} {r.release.version}" for r in rows]
    words = "; ".join(
        f"{who}: {r.mean:.1f} ({a:.1f} to {b:.1f})" for who, r, (a, b) in zip(named, rows, ends, strict=True)
    )
    bottom = TOP + ROW * len(rows)
    parts = opened(name, "Mean scores with 95 % intervals, the best first", words, WIDTH, bottom + 26, "chart wide")
    for value in ticks(low, high, 5):
        parts += [
            line(x(value), TOP, x(value), bottom, "grid"),
            text(x(value), bottom + 18, figure(value), "tick middle"),
        ]
    for i, (who, r, (a, b)) in enumerate(zip(named, rows, ends, strict=True)):
        y = TOP + ROW * (i + 0.5)
        parts += [text(LEFT - 10, y + 4, cut(r.repository.name, _NAME), "end"), line(x(a), y, x(b), y, "bar")]
        parts.append(dot(x(r.mean), y, 5, f"{who}: {r.mean:.1f} ({a:.1f} to {b:.1f})"))
    return Markup("\n".join([*parts, "</svg>"]))  # noqa: S704 - escaped where it is made
