"""Outcomes made by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cofuse.measure.gate import Comparison, Item, Policy, Trial, compare
from cofuse.measure.outcomes import Outcomes

Bools = npt.NDArray[np.bool_]


def outcomes(right: Any, *, task: str = "t", model: str = "old", seed: int = 0, **rest: Any) -> Outcomes:
    """Outcomes that are right where they are said to be: the label is 1, what is wrong is 0."""
    right = np.asarray(right, dtype=np.int64)
    rest = {"protocol": "oldhead", **rest}
    return Outcomes.predicted(right, np.ones_like(right), task=task, model=model, seed=seed, **rest)


def cells(both: int, lost: int, won: int, neither: int) -> tuple[Bools, Bools]:
    """Right or wrong of an old and a new model by how many examples are which, in a drawn order."""
    order = np.random.default_rng(0).permutation(both + lost + won + neither)
    old = np.repeat([True, True, False, False], [both, lost, won, neither])
    new = np.repeat([True, False, True, False], [both, lost, won, neither])
    return old[order], new[order]


def pair(both: int, lost: int, won: int, neither: int, task: str = "t") -> Comparison:
    """A comparison on one task by how many examples are which."""
    old, new = cells(both, lost, won, neither)
    return compare([outcomes(old, task=task)], [outcomes(new, task=task, model="new")])


def drawn(seed: Any, n: int, *, flips: float, drop: float, right: float = 0.8) -> tuple[Bools, Bools]:
    """Two models on `n` examples: a share flips either way, `drop` more of them from right to wrong."""
    random = np.random.default_rng(seed)
    u, base = random.random(n), random.random(n) < right
    won, lost = u < flips / 2, (u >= flips / 2) & (u < flips + drop)
    return np.where(won, False, np.where(lost, True, base)), np.where(won, True, np.where(lost, False, base))


def trial(sides: dict[str, tuple[Bools, Bools]], policy: Policy | None = None, *, rapid: bool = False) -> Trial:
    """A gate on tasks whose examples are all known, run to its end."""
    policy = Policy() if policy is None else policy
    found = Trial([Item("oldhead", t, len(old)) for t, (old, _) in sides.items()], policy, rapid=rapid)
    for batch in found:
        rows = np.arange(batch.start, batch.stop)
        old, new = (
            outcomes(side[rows], task=batch.task, model=model, examples=rows)
            for side, model in zip(sides[batch.task], ("old", "new"), strict=True)
        )
        found.take([old], [new])
    return found
