"""An account's page: its models, its contributions, and the releases that they are in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastapi import APIRouter
from sqlalchemy import ColumnElement, case, exists, func, select
from sqlalchemy.orm import Session as Transaction
from starlette.responses import Response

from ..access.tokens import find_account
from ..access.visitor import Visitor
from ..api.values import Before
from ..database import Account, Contribution, Member, Release, Repository, Share
from ..faults import Unknown
from ..repositories import visible
from .depends import Anybody

router = APIRouter(include_in_schema=False)
MODELS, ROWS, LAST = 30, 30, 100


@dataclass(frozen=True, slots=True)
class Credit:
    """What an account has done for a model: in how many of its last releases it is, and what it weighs in them."""

    repository: Repository
    releases: int
    of: int
    latest: str
    share: float


@router.get("/{owner}")
def account(page: Anybody, owner: str, before: Before = None) -> Response:
    """The page."""
    with page.hub.database.reading() as transaction:
        found = find_account(transaction, owner)
        if found is None:
            raise Unknown("no such account", got=ascii(owner[:100]))
        own = visible(page.visitor).where(Repository.owner_id == found.id)
        models = list(transaction.scalars(own.order_by(Repository.updated.desc()).limit(MODELS)))
        seen = visible(page.visitor).with_only_columns(Repository.id)
        query = select(Contribution).where(Contribution.account_id == found.id, Contribution.repository_id.in_(seen))
        if before is not None:
            query = query.where(Contribution.id < before)
        rows = list(transaction.scalars(query.order_by(Contribution.id.desc()).limit(ROWS + 1)))
        credits_ = credits(transaction, page.visitor, found)
        people = _people(transaction, found)
    return page.show(
        "account",
        account=found,
        models=models,
        rows=rows[:ROWS],
        older=rows[ROWS - 1].id if len(rows) > ROWS else None,
        before=before,
        credits=credits_,
        people=people,
        last=LAST,
    )


def credits(transaction: Transaction, visitor: Visitor, who: Account) -> Sequence[Credit]:  # noqa: A001 - the noun
    """Credits of an account, model by model, over each model's last releases; of models that the visitor may see."""
    offered = exists().where(Contribution.repository_id == Repository.id, Contribution.account_id == who.id)
    query = visible(visitor).where(offered).order_by(Repository.updated.desc()).limit(MODELS)
    found = []
    for repository in transaction.scalars(query):
        latest = (
            select(Release.round_id, Release.version, Release.id)
            .where(Release.repository_id == repository.id, Release.round_id.is_not(None))
            .order_by(Release.id.desc())
            .limit(LAST)
            .subquery()
        )
        whole = select(func.count()).select_from(latest)
        weights = (
            select(latest.c.version, func.sum(Share.weight), _own(who))
            .join(Share, Share.round_id == latest.c.round_id)
            .join(Contribution, Contribution.id == Share.contribution_id)
            .where(Share.dropped == "")
            .group_by(latest.c.id, latest.c.version)
            .order_by(latest.c.id.desc())
        )
        mine = [(version, own / total) for version, total, own in transaction.execute(weights) if own and total]
        of = transaction.scalar(whole) or 0
        if mine:
            found.append(Credit(repository, len(mine), of, mine[0][0], sum(share for _, share in mine) / len(mine)))
    return found


def _own(who: Account) -> ColumnElement[float]:
    return func.sum(case((Contribution.account_id == who.id, Share.weight), else_=0.0))


def _people(transaction: Transaction, found: Account) -> list[tuple[str, str]]:
    """Members of an organisation, or the organisations that somebody is a member of."""
    if found.organisation:
        query = select(Account.name, Member.role).join(Member, Member.account_id == Account.id)
        query = query.where(Member.organisation_id == found.id)
    else:
        query = select(Account.name, Member.role).join(Member, Member.organisation_id == Account.id)
        query = query.where(Member.account_id == found.id)
    return list(transaction.execute(query.order_by(Account.name).limit(200)))
