"""Predicted: how much it will change what the model says, by a Fisher; before any forward pass."""

from __future__ import annotations

from statistics import median

from ...measure.compat import distances, predict
from ..states import Checked
from .beside import Beside
from .case import Case, Found


def look(case: Case) -> Found:
    """By the repository's Fisher (what its branch `fisher` holds), or else by the contribution's own."""
    if case.body is None:
        raise TypeError("there is no body")
    shared = case.payload.get("fisher")
    fisher = case.store.checkpoint(shared) if shared else case.fisher
    if fisher is None:
        return Found(Checked.SKIP, "neither the repository nor the contribution has a Fisher")
    found = predict(case.base, case.body, fisher, anywhere=True, threads=1, progress=case.place.progress)
    whose = "the repository's Fisher" if shared else "its own Fisher"
    most = dict(list(found.tensors.items())[:20])
    detail = {"nats": found.total, "shared": bool(shared), "tensors": most}
    return Found(Checked.PASS, f"{found.total:.3g} nats an example, by {whose}", detail)


def beside(them: Beside) -> dict[int, Found]:
    """Beside what the others are predicted to do, where one Fisher told of all."""
    told = {one.number: one.predicted for one in them.among if one.predicted is not None}
    away = dict(zip(told, distances(list(told.values())), strict=True))
    found = {}
    for one in them.among:
        if len(told) <= them.screen.peers or one.number not in told:
            found[one.number] = Found(Checked.SKIP, "too few others with a prediction by the repository's Fisher")
            continue
        far, usual = away[one.number], median(told.values())
        said = f"{told[one.number]:.3g} nats an example; {usual:.3g} is usual; {far:.1f} deviations away"
        state = them.state(them.screen.predicted, far > them.screen.deviations)
        found[one.number] = Found(state, said, {"deviations": far, "usual": usual})
    return found
