"""Size: whether it is about as long as the others are, in the whole and tensor by tensor."""

from __future__ import annotations

from statistics import median

from ...measure.compat import distances
from ..states import Checked
from .beside import Beside
from .case import Found

_FAR = 10.0  # robust deviations of a tensor's logarithm
_LISTED = 20


def look(them: Beside) -> dict[int, Found]:
    """The relative norm of each change beside the median of the other accounts'."""
    norms = them.geometry.relative
    strange = _strange(them)
    found = {}
    for i, one in enumerate(them.among):
        others = [float(norms[j]) for j in them.others(i)]
        mine = float(norms[i])
        if len(others) < them.screen.peers:
            said = f"{100 * mine:.3g} % of the base's length; {len(others)} others, too few to tell"
            found[one.number] = Found(Checked.SKIP, said, {"relative": mine, "peers": len(others)})
            continue
        usual = median(others)
        times = mine / usual if usual > 0 else float("inf")
        long, short = times > them.screen.norm_factor, times < 1 / them.screen.norm_factor
        names = strange.get(i, [])
        said = f"{times:.3g} times as long as the others' median, {100 * usual:.3g} % of the base's length"
        if names:
            said += f"; out of line: {names[0]}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
        detail = {
            "relative": mine,
            "usual": usual,
            "times": times if usual > 0 else None,
            "peers": len(others),
            "tensors": names[:_LISTED],
        }
        # What is too short harms nobody, and is what the honest look like beside one who is far too long: it is only told.
        state = them.state(them.screen.norm, long)
        if state is Checked.PASS and (names or short) and them.screen.norm != "skip":
            state = Checked.WARN
        found[one.number] = Found(state, said, detail)
    return found


def _strange(them: Beside) -> dict[int, list[str]]:
    """Tensors whose share of a change is far from what it is in the others' changes."""
    count = len(them.among)
    by_tensor = them.geometry.by_tensor[:count]
    found: dict[int, list[str]] = {}
    for column, name in enumerate(them.geometry.names):
        values = by_tensor[:, column]
        if not values.any():
            continue
        for i, away in enumerate(distances([float(v) for v in values])):
            if away > _FAR and values[i] > 0:
                found.setdefault(i, []).append(name)
    return found
