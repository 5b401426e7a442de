"""Claims: what its author says that it scores. Shown, never believed: the hub evaluates for itself."""

from __future__ import annotations

from ..states import Checked
from .case import Case, Found


def look(case: Case) -> Found:
    """The author's own metrics in words."""
    metrics: dict[str, float] = case.payload["metrics"]
    if not metrics:
        return Found(Checked.SKIP, "its author claims nothing")
    said = ", ".join(f"{name} {value:g}" for name, value in list(metrics.items())[:6])
    return Found(Checked.PASS, f"its author claims: {said}", {"metrics": metrics})
