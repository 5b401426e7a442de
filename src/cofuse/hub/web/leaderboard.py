"""The leaderboard: releases by their mean score; only scores on the same suite stand beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any

import yaml
from fastapi import APIRouter, Query
from sqlalchemy import Select, and_, func, select
from sqlalchemy.orm import Session as Transaction
from starlette.responses import Response

from ...document import NOT_YAML
from ..database import Evaluation, Release, Repository
from ..repositories import visible
from .charts.ranked import draw_ranked
from .depends import Anybody

router = APIRouter(include_in_schema=False)
SUITES, ROWS = 20, 60


@dataclass(frozen=True, slots=True)
class Suite:
    """A suite, and how many of the models that can be seen are judged by it."""

    hash: str
    models: int
    name: str


@dataclass(frozen=True, slots=True)
class Ranked:
    """A release with its score."""

    place: int
    repository: Repository
    release: Release
    mean: float
    low: float | None
    high: float | None
    n: int
    newest: bool


@router.get("/leaderboard")
def leaderboard(
    page: Anybody,
    suite: Annotated[str, Query(max_length=64)] = "",
    protocol: Annotated[str, Query(max_length=40)] = "",
    releases: Annotated[str, Query(max_length=8)] = "",
) -> Response:
    """The ranking on one suite."""
    with page.hub.database.reading() as transaction:
        seen = visible(page.visitor).with_only_columns(Repository.id)
        suites = _suites(transaction, page)
        chosen = next((one for one in suites if one.hash == suite), suites[0] if suites else None)
        scored = [] if chosen is None else _scored(transaction, seen, chosen.hash)
    protocols = sorted({score.protocol for score, _, _ in scored})
    used = protocol if protocol in protocols else next(iter(protocols), "")
    rows = _ranked([row for row in scored if row[0].protocol == used], every=releases == "all")
    return page.show(
        "leaderboard",
        suites=suites,
        chosen=chosen,
        protocols=protocols,
        protocol=used,
        every=releases == "all",
        rows=rows,
        chart=draw_ranked(rows[:30], "ranked"),
    )


Scored = tuple[Evaluation, Release, Repository]


def _suites(transaction: Transaction, page: Anybody) -> list[Suite]:
    """Suites of the models that can be seen, those of most models first."""
    query = (
        visible(page.visitor)
        .with_only_columns(Repository.suite_hash, func.count(), func.min(Repository.suite))
        .where(Repository.suite_hash != "")
        .group_by(Repository.suite_hash)
        .order_by(func.count().desc(), Repository.suite_hash)
        .limit(SUITES)
    )
    return [Suite(found, count, suite_name(text)) for found, count, text in transaction.execute(query)]


@lru_cache(maxsize=256)
def suite_name(text: str) -> str:
    """What a suite is called, from its YAML; empty where it does not say.

    >>> suite_name("{name: glue, tasks: [a, b]}"), suite_name("tasks: [a]")
    ('glue', '')
    """
    try:
        said = yaml.safe_load(text) if "&" not in text else None
    except NOT_YAML:
        return ""
    return str(said.get("name", ""))[:80] if isinstance(said, dict) else ""


def _scored(transaction: Transaction, seen: Select[Any], suite: str) -> Sequence[Scored]:
    """Mean scores of releases. From the releases, of which there are few: contributions are evaluated too."""
    query = (
        select(Evaluation, Release, Repository)
        .join(
            Release,
            and_(Release.repository_id == Evaluation.repository_id, Release.commit == Evaluation.commit),
        )
        .join(Repository, Repository.id == Release.repository_id)
        .where(
            Release.repository_id.in_(seen),
            Repository.suite_hash == suite,
            Evaluation.suite == suite,
            Evaluation.task == "*",
        )
        .order_by(Evaluation.mean.desc(), Release.id.desc())
        .limit(2000)
    )
    return list(transaction.execute(query))


def _ranked(scored: Sequence[Scored], *, every: bool) -> list[Ranked]:
    newest: dict[int, int] = {}
    for _, release, repository in scored:
        newest[repository.id] = max(release.id, newest.get(repository.id, 0))
    kept = [row for row in scored if every or newest[row[2].id] == row[1].id][:ROWS]
    return [
        Ranked(i, repository, release, score.mean, score.low, score.high, score.n, newest[repository.id] == release.id)
        for i, (score, release, repository) in enumerate(kept, 1)
    ]
