"""What a chart shows, whoever draws it: the score over rounds of one protocol on one suite, and baselines."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .scores import FUSE_ONCE, INTERTRAIN_MEAN, MULTITASK, PRETRAINED, SUITES, round_number
from .summary import Summary, seeds_interval
from .words import counted

# Baselines that are drawn: the name that stands beside the line, and the name of its style.
DRAWN = (
    (PRETRAINED, "pretrained", "pretrained"),
    (MULTITASK, "multitask", "multitask"),
    (FUSE_ONCE, "fuse once", "once"),
    (INTERTRAIN_MEAN, "intertraining", "intertraining"),
)


@dataclass(frozen=True, slots=True)
class Point:
    """The evolving base at a round (0 is the pretrained base), with its interval over seeds and draws."""

    round: int
    mean: float
    low: float
    high: float
    seeds: int


@dataclass(frozen=True, slots=True)
class Line:
    """A baseline."""

    label: str
    style: str
    mean: float


@dataclass(frozen=True, slots=True)
class Panel:
    """One chart."""

    suite: str
    protocol: str
    tasks: int
    points: tuple[Point, ...]
    lines: tuple[Line, ...]

    @property
    def bounds(self) -> tuple[float, float]:
        """Lowest and highest score that is drawn, with some room."""
        low = min([p.low for p in self.points] + [line.mean for line in self.lines])
        high = max([p.high for p in self.points] + [line.mean for line in self.lines])
        room = max(0.06 * (high - low), 0.25)
        return low - room, high + room

    @property
    def sparse(self) -> bool:
        """Whether rounds between the first and the last point are not measured, so that a line would claim too much."""
        return len(self.points) == 2 and self.points[1].round - self.points[0].round > 1

    @property
    def labels(self) -> tuple[tuple[str, str, float], ...]:
        """What stands at the right of the chart: text, style, score."""
        last = [(f"round {p.round}: {p.mean:.1f}", "evolving", p.mean) for p in self.points[-1:] if p.round]
        return (*last, *((f"{line.label} {line.mean:.1f}", line.style, line.mean) for line in self.lines))

    @property
    def words(self) -> str:
        """The chart for somebody who cannot see it."""
        said = [
            f"{'pretrained' if p.round == 0 else f'round {p.round}'}: {p.mean:.1f} ({p.low:.1f} to {p.high:.1f}, "
            f"{counted(p.seeds, 'seed')})"
            for p in self.points
        ]
        said += [f"{line.label}: {line.mean:.1f}" for line in self.lines if line.style != "pretrained"]
        return "; ".join(said)


def panels(summary: Summary) -> tuple[Panel, ...]:
    """Every chart of a run: protocols in their order, unseen tasks before seen ones."""
    names = dict.fromkeys(p for suite in SUITES for p in summary.scores.protocols(suite))
    found = (_panel(summary, suite, protocol) for protocol in names for suite in SUITES)
    return tuple(p for p in found if p is not None)


def _panel(summary: Summary, suite: str, protocol: str) -> Panel | None:
    scores = summary.scores
    tasks = scores.suites[suite]
    points = []
    for model in (PRETRAINED, *scores.rounds()):
        seeds = scores.finished(model, suite, protocol, tasks)
        if seeds:
            found = seeds_interval(scores.values(model, suite, protocol, tasks, seeds))
            number = round_number(model) or 0
            points.append(Point(number, found.mean, found.low, found.high, len(seeds)))
    lines = [
        Line(label, style, row.mean)
        for model, label, style in DRAWN
        if (row := summary.row(model, suite, "*", protocol)) is not None
    ]
    return Panel(suite, protocol, len(tasks), tuple(points), tuple(lines)) if points else None


def ticks(low: float, high: float, wanted: int = 5) -> tuple[float, ...]:
    """Round numbers between two scores, about as many as wanted.

    >>> ticks(61.3, 88.9)
    (65.0, 70.0, 75.0, 80.0, 85.0)
    >>> ticks(66.1, 66.9)
    (66.2, 66.4, 66.6, 66.8)
    """
    rough = max(high - low, 1e-6) / wanted
    power: float = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= 0.7 * rough)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return tuple(round(i * step, 6) for i in range(first, last + 1))


def round_ticks(last: int, most: int = 10) -> tuple[int, ...]:
    """Rounds that are named below a chart.

    >>> round_ticks(6), round_ticks(35)
    ((0, 1, 2, 3, 4, 5, 6), (0, 5, 10, 15, 20, 25, 30, 35))
    """
    step = next(s for s in _steps() if last / s <= most)
    return tuple(range(0, last + 1, step))


def _steps() -> Iterator[int]:
    power = 1
    while True:
        yield from (power, 2 * power, 5 * power)
        power *= 10


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> tuple[float, ...]:
    """Places as near as may be to those wanted, at least `gap` apart, in the same order, within `low` and `high`.

    What touches is moved together, so that a group stays around its middle. Where there is no room for all, they
    are spread evenly over what there is.

    >>> spread([10.0, 11.0, 50.0], 10, 0, 100)
    (5.5, 15.5, 50.0)
    """
    count = len(wanted)
    if count > 1 and gap * (count - 1) > high - low:
        gap = (high - low) / (count - 1)
    order = sorted(range(count), key=lambda i: wanted[i])
    groups: list[list[float]] = []  # first place, members
    for i in order:
        groups.append([min(max(wanted[i], low), high), 1])
        while len(groups) > 1 and groups[-2][0] + gap * groups[-2][1] > groups[-1][0]:
            first, size = groups[-2]
            next_first, next_size = groups.pop()
            # Least squares: each group wants its first member where its own members averaged.
            start = (first * size + (next_first - gap * size) * next_size) / (size + next_size)
            total = size + next_size
            groups[-1] = [min(max(start, low), high - gap * (total - 1)), total]
    placed = [0.0] * count
    at = iter(order)
    for first, size in groups:
        for k in range(int(size)):
            placed[next(at)] = first + gap * k
    return tuple(placed)
