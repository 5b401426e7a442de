"""What the checks beside the others look at: all contributions that wait for the same round, and how they lie to each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ..policy import Screen
from ..states import Checked
from .geometry import Geometry

STATES = {"skip": Checked.SKIP, "warn": Checked.WARN, "refuse": Checked.REFUSE}


@dataclass(frozen=True, slots=True)
class One:
    """A contribution among others."""

    number: int
    account: str
    predicted: float | None  # by the repository's Fisher


@dataclass(frozen=True, slots=True)
class Beside:
    """Contributions, in the order of `geometry`; where there are releases, the last one's change is its last row.

    Attributes:
        among: contributions.
        geometry: of their changes.
        released: whether there is such a row.
        screen: what the branch's policy says.
    """

    among: Sequence[One]
    geometry: Geometry
    released: bool
    screen: Screen

    def others(self, one: int) -> Mapping[int, float]:
        """Those of other accounts, each account weighing 1: nobody vouches for themselves, or outnumbers others."""
        accounts = Counter(other.account for other in self.among)
        mine = self.among[one].account
        return {j: 1 / accounts[other.account] for j, other in enumerate(self.among) if other.account != mine}

    def state(self, wanted: Literal["skip", "warn", "refuse"], strange: bool) -> Checked:
        """The state of a check that the policy speaks of."""
        return STATES[wanted] if strange else Checked.PASS
