"""What a gate gave."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .comparison import Comparison
from .policy import Policy
from .verdict import Verdict

if TYPE_CHECKING:
    from ..evaluation.suite import OpenSuite


@dataclass(frozen=True, slots=True)
class Gated:
    """What a gate decided, on what, and at what expense.

    Attributes:
        verdict: the decision.
        comparison: what it rests on; empty where the shapes changed.
        policy: that was applied.
        suite: what was evaluated.
        rapid: whether it stopped as soon as it could.
        taken: examples evaluated of both models.
        planned: examples of the full evaluation.
        saved: share of its cost that was not spent.
    """

    verdict: Verdict
    comparison: Comparison
    policy: Policy
    suite: OpenSuite
    rapid: bool
    taken: int
    planned: int
    saved: float
