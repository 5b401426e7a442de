"""Where a model changed: layers across, kinds of tensors down."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from markupsafe import Markup

from .svg import cut, line, opened, text

CELL, LEFT, TOP = 22, 194, 24
_MOST_LAYERS, _MOST_KINDS = 160, 60
_LEVELS = 7
_NAME = 25  # letters that have room


@dataclass(frozen=True, slots=True)
class Change:
    """How far a tensor moved: the norm of its change over the norm of the base's tensor. `layer` is None outside of layers."""

    name: str
    layer: int | None
    part: str
    relative: float


def draw_heat(changes: Sequence[Change], name: str) -> Markup:
    """A cell a tensor, the darker the more it changed, on a logarithmic scale.

    Args:
        changes: of the tensors, in their order.
        name: unique in the page.
    """
    cells: dict[tuple[str, int | None], tuple[str, float]] = {}
    for one in changes:
        if math.isfinite(one.relative) and (one.layer is None or one.layer < _MOST_LAYERS):
            cells.setdefault((one.part, one.layer), (one.name, one.relative))
    kinds = list(dict.fromkeys(kind for kind, _ in cells))[:_MOST_KINDS]
    layers = sorted({layer for _, layer in cells if layer is not None})
    if not kinds:
        return Markup("")
    columns: list[int | None] = [*([None] if any(layer is None for _, layer in cells) else []), *layers]
    values = sorted(value for _, value in cells.values() if value > 0)
    low, high = (values[0], values[-1]) if values else (0.0, 0.0)
    # The few that hardly changed would take the scale for themselves.
    low = max(low, high / 1000)

    def level(value: float) -> int:
        if value <= 0:
            return 0
        share = 1.0 if high <= low else (math.log(max(value, low)) - math.log(low)) / (math.log(high) - math.log(low))
        return 1 + round((_LEVELS - 1) * share)

    most = sorted(cells.values(), key=lambda cell: -cell[1])[:5]
    words = "most changed: " + "; ".join(f"{tensor} by {_said(value)}" for tensor, value in most)
    width, bottom = LEFT + CELL * len(columns), TOP + CELL * len(kinds)
    parts = opened(
        name, "Change of each tensor relative to the base", words, max(width, LEFT + 230), bottom + 40, "chart heat"
    )
    # Cells keep their size; a wide picture scrolls in its frame.
    parts[0] = parts[0].replace("<svg ", f'<svg width="{max(width, LEFT + 230)}" height="{bottom + 40}" ', 1)
    every = max(1, math.ceil(len(layers) / 24))
    for i, layer in enumerate(columns):
        if layer is None or layers.index(layer) % every == 0:
            parts.append(text(LEFT + CELL * (i + 0.5), TOP - 8, "all" if layer is None else str(layer), "tick middle"))
    for j, kind in enumerate(kinds):
        y = TOP + CELL * j
        parts.append(text(LEFT - 8, y + CELL / 2 + 4, cut(kind, _NAME), "end"))
        for i, layer in enumerate(columns):
            cell = cells.get((kind, layer))
            if cell is not None:
                parts.append(_cell(LEFT + CELL * i, y, f"heat{level(cell[1])}", f"{cell[0]}: {_said(cell[1])}"))
    y = bottom + 14
    parts.append(text(LEFT - 8, y + 13, "change of a tensor's norm", "tick end"))
    for k in range(_LEVELS + 1):
        parts.append(_cell(LEFT + CELL * k, y, f"heat{k}", ("unchanged", "least", *[""] * 5, "most")[k]))
    end = LEFT + CELL * (_LEVELS + 1) + 6
    parts.append(text(end, y + 13, f"0, {_said(low)} to {_said(high)}", "tick"))
    parts.append(line(LEFT, bottom + 3, width, bottom + 3, "grid"))
    return Markup("\n".join([*parts, "</svg>"]))  # noqa: S704 - escaped where it is made


def _cell(x: float, y: float, style: str, said: str) -> str:
    size = CELL - 2
    return (
        f'<rect class="{style}" x="{x + 1:g}" y="{y + 1:g}" width="{size}" height="{size}" rx="2">'
        f"<title>{escape(said)}</title></rect>"
    )


def _said(share: float) -> str:
    return f"{100 * share:.2g} %"
