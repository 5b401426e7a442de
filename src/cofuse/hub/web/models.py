"""The home page with its models, and a model's page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Query
from markupsafe import Markup
from sqlalchemy import and_, or_, select
from sqlalchemy.orm import Session as Transaction
from starlette.responses import Response

from ..database import Branch, Release, Repository, Round
from ..repositories import visible
from ..states import Stage
from .charts.lineage import draw_lineage
from .charts.progress import draw_progress, draw_spark
from .depends import Anybody, Known, Reads, Sent
from .history import nodes
from .markdown import body, card, facts
from .page import link
from .paging import After, mark, read_mark
from .progress import Point, progress
from .versions import latest, rows

home = APIRouter(include_in_schema=False)
router = APIRouter(include_in_schema=False)
MODELS = 20  # of a page
_SPARK = 24  # releases of a line in the list
_RELEASES = 8
Search = Annotated[str, Query(max_length=100)]


@dataclass(frozen=True, slots=True)
class Listed:
    """A model in a list: its latest release, and how its score went."""

    repository: Repository
    release: Release | None
    first: Point | None
    last: Point | None
    spark: Markup


@home.get("/")
def models(page: Anybody, q: Search = "", before: After = "") -> Response:
    """The models, those that changed last first, and what was released last."""
    query = visible(page.visitor).order_by(Repository.updated.desc(), Repository.id.desc()).limit(MODELS + 1)
    if q:
        words = [Repository.name.icontains(q, autoescape=True), Repository.description.icontains(q, autoescape=True)]
        query = query.where(or_(*words))
    place = read_mark(before)
    if place is not None:
        updated, last = place
        query = query.where(
            or_(Repository.updated < updated, and_(Repository.updated == updated, Repository.id < last))
        )
    with page.hub.database.reading() as transaction:
        found = list(transaction.scalars(query))
        listed = [_listed(transaction, one, i) for i, one in enumerate(found[:MODELS])]
        seen = visible(page.visitor).with_only_columns(Repository.id)
        releases = select(Release, Repository).join(Repository, Repository.id == Release.repository_id)
        latest_ones = (
            []
            if q or place
            else list(
                transaction.execute(
                    releases.where(Release.repository_id.in_(seen)).order_by(Release.id.desc()).limit(_RELEASES)
                )
            )
        )
    after = mark(found[MODELS - 1].updated, found[MODELS - 1].id) if len(found) > MODELS else None
    return page.show("home", listed=listed, q=q, after=after, releases=latest_ones, first=place is None)


@router.get("/{owner}/{name}")
def model(page: Reads) -> Response:
    """A model: how good it is, how to load it, its card, how it came to be."""
    repository, hub = page.seen.repository, page.hub
    store, version = hub.store(repository), latest(hub, repository)
    with hub.database.reading() as transaction:
        scores = progress(transaction, repository)
        releases = list(
            transaction.scalars(
                select(Release)
                .where(Release.repository_id == repository.id)
                .order_by(Release.id.desc())
                .limit(_RELEASES)
            )
        )
        lineage = nodes(transaction, repository, page.at)
        policies = list(
            transaction.scalars(select(Branch).where(Branch.repository_id == repository.id).order_by(Branch.name))
        )
        held = list(
            transaction.scalars(
                select(Round)
                .where(Round.repository_id == repository.id, Round.state == Stage.HELD)
                .order_by(Round.id.desc())
                .limit(3)
            )
        )
    text = "" if version is None else body(version.card)
    return page.show(
        "model",
        tab="model",
        version=version,
        files=[] if version is None else rows(version, ""),
        card=card(text, page.at("tree", version.commit.id)) if version and text else None,
        facts={} if version is None else facts(version.front),
        charts=[
            (protocol, points, draw_progress(points, f"score-{i}"))
            for i, (protocol, points) in enumerate(scores.items())
        ],
        releases=releases,
        lineage=draw_lineage(lineage, "lineage"),
        policies=policies,
        held=held,
        branches=sorted(store.branches().items()),
        tags=sorted(store.tags().items(), reverse=True)[:50],
    )


@home.get("/new")
def new(page: Known) -> Response:
    """The form for a new model."""
    return page.show("new")


@home.post("/new")
def create(page: Known, sent: Sent) -> Response:
    """Make a repository."""
    from ..api import repositories

    wanted = repositories.NewRepository(
        name=sent.text("name", 96, needed=True),
        owner=sent.text("owner", 96) or None,
        private=sent.ticked("private"),
        description=sent.text("description", 2000),
    )
    made = repositories.create(page.hub, page.visitor, wanted)
    return page.go(link(*made["name"].split("/")))


def _listed(transaction: Transaction, repository: Repository, number: int) -> Listed:
    scores = next(iter(progress(transaction, repository, _SPARK).values()), [])
    release = transaction.scalar(
        select(Release).where(Release.repository_id == repository.id).order_by(Release.id.desc()).limit(1)
    )
    ends: tuple[Any, Any] = (scores[0], scores[-1]) if scores else (None, None)
    return Listed(repository, release, *ends, draw_spark(scores, f"spark-{number}"))
