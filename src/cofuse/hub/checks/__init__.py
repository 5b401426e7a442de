"""Checks of contributions: nothing is fused unseen. A new check is one file and one row.

A check looks at a `Case` and gives what it `Found`; a `CofuseError` that it raises refuses the contribution, and those after it
are not made. Those of `CHECKS` need the contribution alone and are made when it comes in; those of `BESIDE` look at all
that wait for the same round, and are made again whenever another one joins them.
"""

from __future__ import annotations

from collections.abc import Callable

from . import base, change, claims, direction, finite, fisher, form, norms, predicted, shapes, signature, size
from .beside import Beside
from .case import Case, Found

Look = Callable[[Case], Found]

CHECKS: dict[str, Look] = {
    "format": form.look,
    "base": base.look,
    "shapes": shapes.look,
    "finite": finite.look,
    "change": change.look,
    "fisher": fisher.look,
    "signature": signature.look,
    "norms": norms.look,
    "predicted": predicted.look,
    "claims": claims.look,
}
BESIDE: dict[str, Callable[[Beside], dict[int, Found]]] = {
    "size": size.look,
    "direction": direction.look,
    "impact": predicted.beside,
}
# In which order they are shown; the hub itself adds what it finds in its database and by evaluating.
PLACES: dict[str, int] = {
    name: place
    for place, name in enumerate(
        [*CHECKS, "duplicate", *BESIDE, "evaluation"],
    )
}

__all__ = ["BESIDE", "CHECKS", "PLACES", "Beside", "Case", "Found", "Look"]
