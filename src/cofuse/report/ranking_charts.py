"""The pictures of a ranking as SVG inside the page: gains with their intervals; a cheap ranking against a dear one."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from ..measure.ranking.agreement import Agreement
from ..measure.ranking.ranking import Ranked
from .panels import ticks
from .words import signed

WIDTH, LEFT, RIGHT, TOP, ROW = 640, 190, 620, 22, 24
SIDE, EDGE = 320, 46  # of the square that two rankings span
_NAME = 22  # letters of a model's name that have room


def draw_gains(ranked: Sequence[Ranked], name: str) -> str:
    """A row a model: its mean gain and the interval; the upright is the pretrained model.

    Args:
        ranked: of one architecture.
        name: unique in the page.
    """
    room = 0.05 * max(1.0, *(abs(v) for r in ranked for v in (r.gain.low, r.gain.high)))
    low = min(0.0, *(r.gain.low for r in ranked)) - room
    high = max(0.0, *(r.gain.high for r in ranked)) + room

    def x(value: float) -> float:
        return LEFT + (RIGHT - LEFT) * (value - low) / (high - low)

    bottom = TOP + ROW * len(ranked)
    words = "; ".join(f"{r.model}: {said(r)}" for r in ranked)
    parts = _opened(name, f"Gain over {ranked[0].pretrained}, by model", words, WIDTH, bottom + 40)
    for value in ticks(low, high, 7):
        parts.append(f'<line class="grid" x1="{x(value):.1f}" x2="{x(value):.1f}" y1="{TOP}" y2="{bottom}"/>')
        parts.append(_text(x(value), bottom + 16, _minus(value), "tick middle"))
    parts.append(f'<line class="zero" x1="{x(0):.1f}" x2="{x(0):.1f}" y1="{TOP}" y2="{bottom}"/>')
    parts.append(_text((LEFT + RIGHT) / 2, bottom + 34, "points", "tick middle"))
    for i, r in enumerate(ranked):
        y = TOP + ROW * (i + 0.5)
        parts.append(_text(LEFT - 8, y + 4, _cut(r.model), "end"))
        parts.append(
            f'<line class="bar" x1="{x(r.gain.low):.1f}" x2="{x(r.gain.high):.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        parts.append(
            f'<circle cx="{x(r.gain.mean):.1f}" cy="{y:.1f}" r="4.5">'
            f"<title>{escape(f'{r.model}: {said(r)}')}</title></circle>"
        )
    return "\n".join([*parts, "</svg>"])


def draw_agreement(found: Agreement, name: str) -> str:
    """A dot a model: across what the cheap ranking says, upwards what the dear one does."""
    spans = [_span(found.predicted), _span(found.true)]

    def at(value: float, axis: int) -> float:
        low, high = spans[axis]
        share = (value - low) / (high - low)
        return EDGE + SIDE * share if axis == 0 else TOP + SIDE * (1 - share)

    pairs = list(zip(found.models, found.predicted, found.true, strict=True))
    words = "; ".join(f"{m}: {signed(x)} predicted, {signed(y)} true" for m, x, y in pairs)
    title = f"Gain by {found.predictor} against gain by {found.reference}"
    parts = _opened(name, title, words, EDGE + SIDE + 74, TOP + SIDE + 44, "chart")
    bottom = TOP + SIDE
    for value in ticks(*spans[0]):
        across = f"{at(value, 0):.1f}"
        parts.append(f'<line class="grid" x1="{across}" x2="{across}" y1="{TOP}" y2="{bottom}"/>')
        parts.append(_text(at(value, 0), bottom + 16, _minus(value), "tick middle"))
    for value in ticks(*spans[1]):
        up = f"{at(value, 1):.1f}"
        parts.append(f'<line class="grid" x1="{EDGE}" x2="{EDGE + SIDE}" y1="{up}" y2="{up}"/>')
        parts.append(_text(EDGE - 6, at(value, 1) + 4, _minus(value), "tick end"))
    parts.append(_text(EDGE + SIDE / 2, bottom + 36, f"gain, {found.predictor}", "tick middle"))
    parts.append(_text(EDGE, TOP - 8, f"gain, {found.reference}", "tick"))
    for model, x, y in pairs:
        tip = escape(f"{model}: {signed(x)} predicted, {signed(y)} true")
        parts.append(f'<circle cx="{at(x, 0):.1f}" cy="{at(y, 1):.1f}" r="4.5"><title>{tip}</title></circle>')
    return "\n".join([*parts, "</svg>"])


def said(ranked: Ranked) -> str:
    """A mean gain in words."""
    return f"{signed(ranked.gain.mean)} ({signed(ranked.gain.low)} to {signed(ranked.gain.high)})"


def _opened(name: str, title: str, words: str, width: float, height: float, style: str = "chart wide") -> list[str]:
    return [
        f'<svg class="{style}" viewBox="0 0 {width:.0f} {height:.0f}" role="img" '
        f'aria-labelledby="{name}-title {name}-words">',
        f'<title id="{name}-title">{escape(title)}</title>',
        f'<desc id="{name}-words">{escape(words)}</desc>',
    ]


def _text(x: float, y: float, text: str, style: str) -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def _span(values: Sequence[float]) -> tuple[float, float]:
    room = max(0.08 * (max(values) - min(values)), 0.05)
    return min(values) - room, max(values) + room


def _minus(value: float) -> str:
    return f"{value:g}".replace("-", "\N{MINUS SIGN}")


def _cut(name: str) -> str:
    return name if len(name) <= _NAME else "\N{HORIZONTAL ELLIPSIS}" + name[1 - _NAME :]
