"""A panel as SVG inside the page: the page's style sheet gives colours, so that it follows light and dark."""

from __future__ import annotations

from html import escape

from .panels import Panel, round_ticks, spread, ticks
from .words import counted, protocol_words

# In units of the drawing, about a pixel of a phone.
WIDTH, HEIGHT = 440, 290
LEFT, RIGHT, TOP, BOTTOM = 40, 300, 14, 248
LABELS, LABEL_GAP = 312, 17


def draw_panel(panel: Panel, name: str) -> str:
    """The drawing.

    Args:
        panel: what is drawn.
        name: unique in the page, for the ids that its title is found by.
    """
    low, high = panel.bounds
    last = max(1, panel.points[-1].round)

    def x(number: float) -> float:
        return LEFT + 12 + (RIGHT - LEFT - 24) * number / last

    def y(value: float) -> float:
        return BOTTOM - (BOTTOM - TOP) * (value - low) / (high - low)

    title = f"{protocol_words(panel.protocol)} on {counted(panel.tasks, f'{panel.suite} task')}, score over rounds"
    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="{name}-title {name}-words">',
        f'<title id="{name}-title">{escape(title)}</title>',
        f'<desc id="{name}-words">{escape(panel.words)}</desc>',
    ]
    for value in ticks(low, high):
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>')
        parts.append(_text(LEFT - 6, y(value) + 4, f"{value:g}", "tick end"))
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{RIGHT}" y1="{BOTTOM}" y2="{BOTTOM}"/>')
    parts += [_text(x(number), BOTTOM + 17, str(number), "tick middle") for number in round_ticks(last)]
    parts.append(_text((LEFT + RIGHT) / 2, BOTTOM + 36, "round (0: pretrained)", "tick middle"))
    for line in panel.lines:
        at = f"{y(line.mean):.1f}"
        parts.append(f'<line class="baseline {line.style}" x1="{LEFT}" x2="{RIGHT}" y1="{at}" y2="{at}"/>')
    path = " ".join(f"{x(p.round):.1f},{y(p.mean):.1f}" for p in panel.points)
    parts.append(f'<polyline class="evolving{" sparse" if panel.sparse else ""}" points="{path}"/>')
    for p in panel.points:
        across = f"{x(p.round):.1f}"
        said = f"{'pretrained' if p.round == 0 else f'round {p.round}'}: {p.mean:.1f} ({p.low:.1f} to {p.high:.1f})"
        parts.append(f'<line class="bar" x1="{across}" x2="{across}" y1="{y(p.high):.1f}" y2="{y(p.low):.1f}"/>')
        parts.append(f'<circle cx="{across}" cy="{y(p.mean):.1f}" r="4"><title>{escape(said)}</title></circle>')
    parts += _labels(panel, [y(mean) for _, _, mean in panel.labels])
    parts.append("</svg>")
    return "\n".join(parts)


def _labels(panel: Panel, wanted: list[float]) -> list[str]:
    """Names beside their lines; a thin line leads to those that had to move."""
    parts = []
    placed = spread(wanted, LABEL_GAP, TOP, BOTTOM)
    for (text, style, _), line, at in zip(panel.labels, wanted, placed, strict=True):
        parts.append(f'<path class="lead" d="M{RIGHT} {line:.1f} L{LABELS - 3} {at:.1f}"/>')
        parts.append(_text(LABELS, at + 4, text, f"label {style}"))
    return parts


def _text(x: float, y: float, text: str, style: str) -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'
