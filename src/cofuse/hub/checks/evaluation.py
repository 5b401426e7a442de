"""Evaluation: what it scores on the repository's suite beside its base; made on the hub, once both have been measured."""

from __future__ import annotations

from statistics import fmean

from sqlalchemy import select
from sqlalchemy.orm import Session as Transaction

from ..database import Contribution, Evaluation, Repository
from ..policy import Screen
from ..states import Checked
from .beside import STATES
from .case import Found


def compare(transaction: Transaction, contribution: Contribution, screen: Screen) -> Found | None:
    """The mean over all that was measured of both; None where one of them has not been measured on this suite.

    Args:
        transaction: where the scores are.
        contribution: one that has a commit.
        screen: what the branch's policy says.
    """
    repository = transaction.get_one(Repository, contribution.repository_id)
    scores: dict[str, dict[tuple[str, str], Evaluation]] = {contribution.base: {}, contribution.commit or "": {}}
    query = select(Evaluation).where(
        Evaluation.repository_id == repository.id,
        Evaluation.suite == repository.suite_hash,
        Evaluation.commit.in_(list(scores)),
        Evaluation.task != "*",
    )
    for row in transaction.scalars(query):
        scores[row.commit][row.task, row.protocol] = row
    before, after = scores.values()
    both = sorted(before.keys() & after.keys())
    if not both:
        return None
    gains = {key: after[key].mean - before[key].mean for key in both}
    gain = fmean(gains.values())
    worst = min(gains, key=lambda key: gains[key])
    said = f"{gain:+.2f} points beside its base, over {len(both)} scores; worst: {worst[0]}, {gains[worst]:+.2f}"
    detail = {
        "gain": gain,
        "scores": [
            {"task": task, "protocol": protocol, "base": before[task, protocol].mean, "own": after[task, protocol].mean}
            for task, protocol in both
        ],
    }
    state = STATES[screen.evaluation] if gain < -screen.points else Checked.PASS
    return Found(state, said, detail)
