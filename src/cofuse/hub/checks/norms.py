"""Norms: how far each tensor has moved, for itself."""

from __future__ import annotations

from typing import Any

from ...checkpoint.architecture import layer_of
from ...errors import CheckpointError
from ..states import Checked
from .case import Case, Found
from .geometry import Geometry, measure

FAR = 1.0  # a tensor that moved by more than its own length is another one
_KEPT = 5000  # tensors whose norms are kept for the map


def look(case: Case) -> Found:
    """The relative change of the whole, and of each tensor."""
    if case.body is None:
        raise TypeError("there is no body")
    found = measure([(case.body, case.base)], case.place.progress)
    whole = float(found.relative[0])
    rows = _rows(found)
    largest = sorted(rows, key=lambda row: -row["relative"])[:5]
    detail = {"relative": whole, "largest": [row["name"] for row in largest], "tensors": rows[:_KEPT]}
    if not rows or whole == 0:
        raise CheckpointError("no weight is changed", got="a change of other numbers alone")
    said = f"changed by {100 * whole:.3g} % of its length; most: {largest[0]['name']}, {100 * largest[0]['relative']:.3g} %"
    return Found(Checked.WARN if whole > FAR else Checked.PASS, said, detail)


def _rows(found: Geometry) -> list[dict[str, Any]]:
    """One a tensor: its layer and part of it, for a map; norms of change and base."""
    rows = []
    for column, name in enumerate(found.names):
        spot = layer_of(name)
        layer = None if spot is None else spot[1]
        part = name if spot is None else name[len(spot[0]) + 1 :].partition(".")[2]
        moved, before = float(found.moved[0, column]), float(found.before[0, column])
        relative = float(found.by_tensor[0, column])
        rows.append(
            {
                "name": name,
                "layer": layer,
                "part": part,
                "change": _short(moved),
                "base": _short(before),
                "relative": _short(relative),
            }
        )
    return rows


def _short(value: float) -> float:
    return float(f"{value:.5g}")
