"""The line between two models as a picture (SVG, PNG) and as a table."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CofuseError
from ..measure.curve import Curve
from .files import replace
from .panels import ticks

if TYPE_CHECKING:
    from rich.console import Console

# In units of the drawing; one chart above the other, so that a share stands below itself.
WIDTH, LEFT, RIGHT, TOP, HEIGHT, GAP = 560, 62, 540, 72, 190, 66
INK, MUTED, RULE, LINE, SCORE = "#1b1f24", "#57606a", "#d0d7de", "#0b5cad", "#166534"
# The file stands alone: it brings its own style, and a background, since it may be shown on any.
_STYLE = (
    f"text{{font:12px system-ui,'Liberation Sans',sans-serif;fill:{INK}}} .muted{{fill:{MUTED}}} "
    f".title{{font-size:14px;font-weight:600}} .end{{text-anchor:end}} .middle{{text-anchor:middle}} "
    f".grid{{stroke:{RULE}}} .chord{{stroke:{MUTED};stroke-dasharray:5 4}} .curve{{fill:none;stroke-width:2.5}} "
    f".barrier{{stroke:#9a3412;stroke-width:2}}"
)


def write_curve(path: Path, curve: Curve, names: Sequence[str]) -> None:
    """Write the picture; whole or not there.

    Args:
        path: its ending says what: `.svg` or `.png`.
        curve: what is drawn.
        names: of the two models.

    Raises:
        CofuseError: another ending, or the file cannot be written.
    """
    replace(path, drawer(path)(curve, names))


def drawer(path: Path) -> Callable[[Curve, Sequence[str]], bytes]:
    """What draws a file of this ending; refused before anything is measured.

    Raises:
        CofuseError: another ending.
    """
    if path.suffix not in DRAWERS:
        raise CofuseError("no such kind of picture", got=path.name, expected=" or ".join(DRAWERS))
    return DRAWERS[path.suffix]


def draw_svg(curve: Curve, names: Sequence[str]) -> bytes:
    """Loss above, score below; the dashed chord, and where the loss is farthest above it."""
    bottom = TOP + 2 * HEIGHT + GAP + 56
    words = "; ".join(f"{p.share:.2f}: loss {p.loss:.4f}, score {p.score:.2f}" for p in curve.points)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom}" width="{WIDTH}" height="{bottom}" '
        'role="img" aria-labelledby="curve-title curve-words">',
        f'<title id="curve-title">{escape(_title(curve))}</title>',
        f'<desc id="curve-words">{escape(words)}</desc>',
        f'<style>{_STYLE}</style><rect width="100%" height="100%" fill="#ffffff"/>',
        f'<text class="title" x="12" y="22">{escape(_title(curve))}</text>',
        f'<text class="muted" x="12" y="41">{escape(_said(curve))}</text>',
    ]
    parts += _chart(curve, "loss, nats", [p.loss for p in curve.points], TOP, LINE, marked=True)
    parts += _chart(curve, curve.metric, [p.score for p in curve.points], TOP + HEIGHT + GAP, SCORE)
    parts.append(f'<text class="muted" x="{LEFT}" y="{bottom - 10}">0 = {escape(_cut(names[0]))}</text>')
    parts.append(f'<text class="muted end" x="{RIGHT}" y="{bottom - 10}">1 = {escape(_cut(names[1]))}</text>')
    return ("\n".join([*parts, "</svg>"]) + "\n").encode()


def _chart(
    curve: Curve, what: str, values: Sequence[float], top: float, colour: str, *, marked: bool = False
) -> list[str]:
    low, high = _bounds(values)

    def x(share: float) -> float:
        return LEFT + (RIGHT - LEFT) * share

    def y(value: float) -> float:
        return top + HEIGHT * (high - value) / (high - low)

    parts = [f'<text x="{LEFT}" y="{top - 6}">{escape(what)}</text>']
    for value in ticks(low, high):
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>')
        parts.append(f'<text class="muted end" x="{LEFT - 6}" y="{y(value) + 4:.1f}">{value:g}</text>')
    for tenth in range(0, 11, 2):
        parts.append(
            f'<text class="muted middle" x="{x(tenth / 10):.1f}" y="{top + HEIGHT + 16}">{tenth / 10:g}</text>'
        )
    ends = f'x1="{x(0):.1f}" y1="{y(values[0]):.1f}" x2="{x(1):.1f}" y2="{y(values[-1]):.1f}"'
    parts.append(f'<line class="chord" {ends}/>')
    line = " ".join(f"{x(p.share):.1f},{y(v):.1f}" for p, v in zip(curve.points, values, strict=True))
    parts.append(f'<polyline class="curve" stroke="{colour}" points="{line}"/>')
    if marked and curve.barrier > 0:
        worst = max(curve.points, key=lambda p: p.loss - curve.chord(p.share))
        at = f"{x(worst.share):.1f}"
        parts.append(
            f'<line class="barrier" x1="{at}" x2="{at}" y1="{y(worst.loss):.1f}" y2="{y(curve.chord(worst.share)):.1f}">'
            f"<title>barrier {curve.barrier:.4f} nats</title></line>"
        )
    for p, v in zip(curve.points, values, strict=True):
        said = f"{p.share:.2f}: {v:.4f}"
        parts.append(
            f'<circle fill="{colour}" cx="{x(p.share):.1f}" cy="{y(v):.1f}" r="3.5"><title>{said}</title></circle>'
        )
    return parts


def draw_png(curve: Curve, names: Sequence[str]) -> bytes:
    """The same by matplotlib.

    Raises:
        CofuseError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise CofuseError("a picture needs matplotlib", hint='pip install "cofuse[report]"') from None
    figure = Figure(figsize=(6.2, 6.6), dpi=120, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{_title(curve)}\n{_said(curve)}".replace("$", r"\$"), fontsize=10)
    shares = [p.share for p in curve.points]
    charts = (
        ("loss, nats", [p.loss for p in curve.points], LINE),
        (curve.metric, [p.score for p in curve.points], SCORE),
    )
    for axes, (what, values, colour) in zip(figure.subplots(2, 1, sharex=True), charts, strict=True):
        axes.plot([0, 1], [values[0], values[-1]], color=MUTED, linestyle="--", linewidth=1)
        axes.plot(shares, values, color=colour, marker="o", linewidth=2)
        axes.set_ylim(*_bounds(values))
        axes.set_ylabel(what)
        axes.grid(axis="y", color=RULE)
    axes.set_xlabel(f"0 = {_cut(names[0])}      1 = {_cut(names[1])}".replace("$", r"\$"))
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


DRAWERS: dict[str, Callable[[Curve, Sequence[str]], bytes]] = {".svg": draw_svg, ".png": draw_png}


def curve_table(curve: Curve, names: Sequence[str], console: Console) -> None:
    """Print the points, and the barriers below."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    title = f"{_title(curve)}: {names[0]} to {names[1]}"
    table = Table(title=Text(title, style="bold"), title_justify="left", box=box.SIMPLE)
    for head in ("share of the second", "loss", "above the chord", curve.metric):
        table.add_column(head, justify="right")
    for p in curve.points:
        table.add_row(f"{p.share:.2f}", f"{p.loss:.4f}", f"{p.loss - curve.chord(p.share):+.4f}", f"{p.score:.2f}")
    console.print(table)
    console.print(Text(_note(curve)))


def _title(curve: Curve) -> str:
    heads: dict[str, Any] = {
        "own": "their own head, mixed",
        "kept": "their kept heads, mixed",
        "probe": "a probe at each point",
    }
    return f"{curve.task}, {curve.split} split ({curve.examples:,} examples), {heads[curve.head]}"


def _said(curve: Curve) -> str:
    """What there is room for in a picture."""
    return f"barrier {curve.barrier:.4f} nats above the chord, {curve.above_mean:.4f} above the ends' mean"


def _note(curve: Curve) -> str:
    return f"{_said(curve)}; the score falls {curve.score_barrier:.2f} below its chord"


def _bounds(values: Sequence[float]) -> tuple[float, float]:
    room = max(0.08 * (max(values) - min(values)), 1e-3)
    return min(values) - room, max(values) + room


def _cut(name: str) -> str:
    return name if len(name) <= 34 else "\N{HORIZONTAL ELLIPSIS}" + name[-33:]
