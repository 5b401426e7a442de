"""All panels as one picture, for documents and slides."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

from ..errors import CofuseError
from .panels import Panel, round_ticks, spread, ticks
from .words import counted, protocol_words

DPI = 120
WIDTH, ROW, HEAD = 12.0, 3.6, 0.9  # inches
_STYLES: dict[str, tuple[str, Any]] = {  # colour and dashes; the same as the page's light colours
    "evolving": ("#0b5cad", "-"),
    "pretrained": ("#57606a", (0, (1, 2))),
    "multitask": ("#9a3412", (0, (6, 3))),
    "once": ("#6b21a8", (0, (6, 2, 1, 2))),
    "intertraining": ("#166534", (0, (3, 2))),
}


def draw_png(charts: Sequence[Panel], title: str, note: str) -> bytes:
    """The picture: two charts a row, in their order.

    Args:
        charts: what is drawn.
        title: above everything.
        note: below the title, in small.

    Raises:
        CofuseError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise CofuseError("a picture needs matplotlib", hint='pip install "cofuse[report]"') from None
    height = HEAD + ROW * max(1, math.ceil(len(charts) / 2))
    # A figure of its own canvas, not of pyplot: no global state, and nothing that looks for a display.
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    figure.text(0.02, 1 - 0.3 / height, _plain(title), fontsize=15, fontweight="bold", va="center")
    figure.text(0.02, 1 - 0.62 / height, _plain(note), fontsize=9.5, color="#57606a", va="center")
    if not charts:
        figure.text(0.5, 0.4, "nothing is measured yet", ha="center", fontsize=12, color="#57606a")
    for i, panel in enumerate(charts):
        row, column = divmod(i, 2)
        bottom = height - HEAD - ROW * (row + 1)
        box = (column / 2 + 0.05, (bottom + 0.6) / height, 0.3, (ROW - 0.95) / height)
        _draw(figure.add_axes(box), panel)
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def _draw(axes: Any, panel: Panel) -> None:
    low, high = panel.bounds
    last = max(1, panel.points[-1].round)
    axes.set_title(
        f"{protocol_words(panel.protocol).capitalize()}, {counted(panel.tasks, f'{panel.suite} task')}",
        loc="left",
        fontsize=11,
        fontweight="bold",
    )
    axes.set_xlim(-0.05 * last, 1.05 * last)
    axes.set_ylim(low, high)
    axes.set_yticks(ticks(low, high))
    axes.set_xticks(round_ticks(last))
    axes.set_xlabel("round (0: pretrained)", fontsize=9.5)
    axes.tick_params(labelsize=9.5, color="#8c959f")
    axes.grid(axis="y", color="#d0d7de", linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    for line in panel.lines:
        colour, dashes = _STYLES[line.style]
        axes.axhline(line.mean, color=colour, linestyle=dashes, linewidth=1.6)
    colour = _STYLES["evolving"][0]
    axes.errorbar(
        [p.round for p in panel.points],
        [p.mean for p in panel.points],
        yerr=[[p.mean - p.low for p in panel.points], [p.high - p.mean for p in panel.points]],
        color=colour,
        linestyle=":" if panel.sparse else "-",
        marker="o",
        markersize=5,
        linewidth=2,
        elinewidth=1.5,
        capsize=3,
        zorder=3,
    )
    wanted = [(mean - low) / (high - low) for _, _, mean in panel.labels]
    for (text, style, _), value, at in zip(panel.labels, wanted, spread(wanted, 0.085, 0.0, 1.0), strict=True):
        axes.annotate(
            text,
            xy=(1.0, value),
            xytext=(1.05, at),
            xycoords="axes fraction",
            textcoords="axes fraction",
            fontsize=9.5,
            color=_STYLES[style][0],
            fontweight="bold" if style == "evolving" else "normal",
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": "#8c959f", "linewidth": 0.7, "shrinkA": 1, "shrinkB": 0},
        )


def _plain(text: str) -> str:
    """Text that matplotlib does not take for a formula."""
    return text.replace("$", r"\$")
