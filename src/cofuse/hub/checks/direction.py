"""Direction: whether it pulls the way that the others do, and that the last release went."""

from __future__ import annotations

from ..states import Checked
from .beside import Beside
from .case import Found


def look(them: Beside) -> dict[int, Found]:
    """The cosine of each change with the mean direction of other accounts' changes; 1 is the same way, -1 the opposite."""
    found = {}
    for i, one in enumerate(them.among):
        others = them.others(i)
        detail: dict[str, float | int] = {"peers": len(others)}
        said = []
        strange = False
        if them.released:
            detail["release"] = round(them.geometry.cosine(i, {len(them.among): 1.0}), 4)
            said.append(f"{detail['release']:+.3f} with the last release's change")
        if len(others) >= them.screen.peers:
            cosine = them.geometry.cosine(i, others)
            detail["cosine"] = round(cosine, 4)
            strange = cosine < them.screen.cosine
            said.insert(0, f"cosine {cosine:+.3f} with the mean of {len(others)} others")
        else:
            said.insert(0, f"{len(others)} others, too few to tell")
        state = Checked.SKIP if "cosine" not in detail else them.state(them.screen.direction, strange)
        found[one.number] = Found(state, "; ".join(said), detail)
    return found
