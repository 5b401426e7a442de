"""The score over releases: a chart with intervals, and a line small enough for a list."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from ....report.panels import ticks
from ..progress import Point
from .svg import dot, figure, line, linked, opened, text

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 440, 38, 432, 12, 176
_LABEL = 50  # that a version's name needs
SPARK_WIDTH, SPARK_HEIGHT = 132, 36


def draw_progress(points: Sequence[Point], name: str) -> Markup:
    """A dot a release with its interval, on a line; each leads to its version.

    Args:
        points: in the order they were released.
        name: unique in the page.
    """
    if not points:
        return Markup("")
    low, high = min(p.low for p in points), max(p.high for p in points)
    room = max(0.08 * (high - low), 0.25)
    low, high = low - room, high + room
    step = (RIGHT - LEFT - 44) / max(1, len(points) - 1)

    def x(place: int) -> float:
        return (LEFT + RIGHT) / 2 if len(points) == 1 else LEFT + 22 + place * step

    def y(value: float) -> float:
        return BOTTOM - (BOTTOM - TOP) * (value - low) / (high - low)

    title = f"Mean score over {len(points)} releases, with 95 % intervals"
    parts = opened(name, title, "; ".join(said(p) for p in points), WIDTH, BOTTOM + 34, "chart wide")
    parts[0] = parts[0].replace('role="img"', 'role="group"')  # its dots are links
    for value in ticks(low, high):
        parts += [
            line(LEFT, y(value), RIGHT, y(value), "grid"),
            text(LEFT - 6, y(value) + 4, figure(value), "tick end"),
        ]
    parts.append(line(LEFT, BOTTOM, RIGHT, BOTTOM, "axis"))
    path = " ".join(f"{x(i):.1f},{y(p.mean):.1f}" for i, p in enumerate(points))
    parts.append(f'<polyline class="evolving" points="{path}"/>')
    every = max(1, -(-_LABEL // max(1, int(step)))) if len(points) > 1 else 1
    for i, p in enumerate(points):
        drawn = line(x(i), y(p.low), x(i), y(p.high), "bar") + dot(x(i), y(p.mean), 5, said(p))
        parts.append(linked(p.href, said(p), drawn))
        if (len(points) - 1 - i) % every == 0:
            parts.append(text(x(i), BOTTOM + 19, p.version, "tick middle"))
    return Markup("\n".join([*parts, "</svg>"]))  # noqa: S704 - escaped where it is made


def draw_spark(points: Sequence[Point], name: str) -> Markup:
    """A line without axes: how the score went, and where it is."""
    if len(points) < 2:
        return Markup("")
    low, high = min(p.mean for p in points), max(p.mean for p in points)
    span = max(high - low, 1e-9)

    def x(place: int) -> float:
        return 4 + (SPARK_WIDTH - 10) * place / (len(points) - 1)

    def y(value: float) -> float:
        return SPARK_HEIGHT - 5 - (SPARK_HEIGHT - 10) * (value - low) / span if high > low else SPARK_HEIGHT / 2

    said_all = f"{points[0].version}: {points[0].mean:.1f}, to {points[-1].version}: {points[-1].mean:.1f}"
    parts = opened(name, f"Score over {len(points)} releases", said_all, SPARK_WIDTH, SPARK_HEIGHT, "chart spark")
    path = " ".join(f"{x(i):.1f},{y(p.mean):.1f}" for i, p in enumerate(points))
    last = len(points) - 1
    parts += [f'<polyline class="evolving" points="{path}"/>', dot(x(last), y(points[-1].mean), 3.5, said(points[-1]))]
    return Markup("".join([*parts, "</svg>"]))  # noqa: S704 - escaped where it is made


def said(p: Point) -> str:
    """A point in words."""
    interval = f" ({p.low:.1f} to {p.high:.1f})" if p.high > p.low else ""
    return f"{p.version}: {p.mean:.1f}{interval}"
