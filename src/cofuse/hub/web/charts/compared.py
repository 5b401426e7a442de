"""A version's scores beside its base's: a row a task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from ....report.panels import ticks
from .svg import cut, dot, figure, line, opened, text

WIDTH, LEFT, RIGHT, TOP, ROW = 440, 112, 428, 8, 24
_NAME = 15  # letters that have room


@dataclass(frozen=True, slots=True)
class Score:
    """A mean with its interval."""

    mean: float
    low: float | None
    high: float | None

    def __str__(self) -> str:
        return f"{self.mean:.1f}" + ("" if self.low is None else f" ({self.low:.1f} to {self.high:.1f})")


@dataclass(frozen=True, slots=True)
class Pair:
    """A task's score of the base (None: not measured) and of what was made of it."""

    name: str
    base: Score | None
    tuned: Score


def draw_compared(pairs: Sequence[Pair], name: str) -> Markup:
    """A dot a task: its score minus the base's, with the interval of its score; the upright is the base."""
    pairs = [p for p in pairs if p.base is not None]
    if not pairs:
        return Markup("")
    rows = [(p, *_minus(p.tuned, p.base)) for p in pairs if p.base is not None]
    low, high = min(0.0, *(row[2] for row in rows)), max(0.0, *(row[3] for row in rows))
    room = max(0.05 * (high - low), 0.1)
    low, high = low - room, high + room

    def x(value: float) -> float:
        return LEFT + (RIGHT - LEFT) * (value - low) / (high - low)

    bottom = TOP + ROW * len(rows)
    words = "; ".join(f"{p.name}: {p.tuned}, base {p.base}" for p in pairs)
    parts = opened(name, "Score minus the base's score, by task", words, WIDTH, bottom + 44, "chart wide")
    for value in ticks(low, high):
        parts += [
            line(x(value), TOP, x(value), bottom, "grid"),
            text(x(value), bottom + 18, figure(value), "tick middle"),
        ]
    parts += [line(x(0), TOP, x(0), bottom, "zero"), text((LEFT + RIGHT) / 2, bottom + 38, "points", "tick middle")]
    for i, (p, mean, a, b) in enumerate(rows):
        y = TOP + ROW * (i + 0.5)
        parts.append(text(LEFT - 10, y + 4, cut(p.name, _NAME), "end"))
        parts.append(line(x(a), y, x(b), y, "bar"))
        parts.append(dot(x(mean), y, 5, f"{p.name}: {p.tuned}, base {p.base}"))
    return Markup("\n".join([*parts, "</svg>"]))  # noqa: S704 - escaped where it is made


def _minus(tuned: Score, base: Score) -> tuple[float, float, float]:
    low, high = (tuned.mean if v is None else v for v in (tuned.low, tuned.high))
    return tuned.mean - base.mean, low - base.mean, high - base.mean
