"""Scores of a repository's releases on the suite that it is judged by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import and_, select
from sqlalchemy.orm import Session as Transaction

from ..database import Evaluation, Release, Repository
from .page import link

MOST = 60  # releases that are drawn


@dataclass(frozen=True, slots=True)
class Point:
    """A release's mean score over the tasks of a suite."""

    version: str
    commit: str
    created: float
    mean: float
    low: float
    high: float
    href: str


def progress(transaction: Transaction, repository: Repository, most: int = MOST) -> Mapping[str, Sequence[Point]]:
    """Scores in the order of releases, by protocol; none where the suite is not set or nothing is measured.

    Args:
        transaction: where.
        repository: whose. Only its present suite counts: scores on different suites are not comparable.
        most: releases, the latest.
    """
    if not repository.suite_hash:
        return {}
    latest = (
        select(Release.id)
        .where(Release.repository_id == repository.id)
        .order_by(Release.id.desc())
        .limit(most)
        .subquery()
    )
    query = (
        select(Release.version, Release.commit, Release.created, Evaluation)
        .join(
            Evaluation,
            and_(
                Evaluation.repository_id == Release.repository_id,
                Evaluation.commit == Release.commit,
                Evaluation.suite == repository.suite_hash,
                Evaluation.task == "*",
            ),
        )
        .where(Release.id.in_(select(latest.c.id)))
        .order_by(Release.id)
    )
    found: dict[str, list[Point]] = {}
    for version, commit, created, score in transaction.execute(query):
        point = Point(
            version,
            commit,
            created,
            score.mean,
            score.mean if score.low is None else score.low,
            score.mean if score.high is None else score.high,
            link(repository.owner.name, repository.name, "tree", version),
        )
        found.setdefault(score.protocol, []).append(point)
    return dict(sorted(found.items()))
