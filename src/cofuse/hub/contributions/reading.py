"""Contributions as they are listed and shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, bindparam, select
from sqlalchemy.orm import Session as Transaction

from ..database import Account, Check, Comment, Contribution, Database, Repository
from ..faults import Invalid, Unknown
from ..states import Offered

MOST = 200  # of a page


def find(transaction: Transaction, repository: Repository, number: int, *, locked: bool = False) -> Contribution:
    """A contribution by its number.

    Args:
        transaction: where.
        repository: whose.
        number: its.
        locked: whether it is about to be changed.

    Raises:
        Unknown: there is none.
    """
    query = select(Contribution).where(
        Contribution.repository_id == repository.id, Contribution.number == min(number, 2**31 - 1)
    )
    found = transaction.scalar(query.with_for_update(of=Contribution) if locked else query)
    if found is None or found.number != number:
        raise Unknown("no such contribution", where=repository.full_name, got=f"#{str(number)[:20]}")
    return found


async def whole(database: Database, repository: Repository, number: int) -> dict[str, Any]:
    """A contribution with its checks, as JSON; for a route that runs in the event loop.

    Raises:
        Unknown: there is none.
    """
    rows = await database.quick(_WHOLE, repository=repository.id, number=min(number, 2**31 - 1))
    if not rows or rows[0].number != number:
        raise Unknown("no such contribution", where=repository.full_name, got=f"#{str(number)[:20]}")
    checks = [
        {"name": row.check, "state": row.check_state, "figure": row.figure, "detail": row.detail}
        for row in rows
        if row.check is not None
    ]
    return _said(rows[0], repository.full_name, rows[0].author) | {"checks": checks}


# One statement, a row for each check: a second one would cost as much again.
_WHOLE = (
    select(
        Contribution.__table__,
        Account.name.label("author"),
        Check.name.label("check"),
        Check.state.label("check_state"),
        Check.figure,
        Check.detail,
    )
    .join(Account, Account.id == Contribution.account_id)
    .outerjoin(Check, Check.contribution_id == Contribution.id)
    .where(Contribution.repository_id == bindparam("repository"), Contribution.number == bindparam("number"))
    .order_by(Check.place, Check.name)
)


def page(
    transaction: Transaction,
    repository: Repository,
    *,
    state: str | None = None,
    branch: str | None = None,
    account: str | None = None,
    before: int | None = None,
    limit: int = 50,
) -> Sequence[Contribution]:
    """Contributions, newest first; the next page is `before` the number of this one's last.

    Each is found by an index: nothing is counted or passed over.

    Args:
        transaction: where.
        repository: whose.
        state: in this one alone.
        branch: of this one alone.
        account: offered by this one alone.
        before: numbers below this one.
        limit: how many.

    Raises:
        Invalid: no such state.
        Unknown: no such account.
    """
    if state is not None and state not in list(Offered):
        raise Invalid("no such state", got=ascii(state[:40]), expected=", ".join(Offered))
    most = max(1, min(limit, MOST))
    query = select(Contribution).where(Contribution.repository_id == repository.id)
    if before is not None:
        query = query.where(Contribution.number < before)
    if account is not None:
        query = query.where(Contribution.account_id == _account(transaction, account))
    if branch is not None:
        query = query.where(Contribution.branch == branch)
    if state is not None:
        query = query.where(Contribution.state == state)
    elif branch is not None and account is None:
        # The index has a branch's by state: the newest of each, of which the newest are taken.
        each = (query.where(Contribution.state == one).order_by(Contribution.number.desc()) for one in Offered)
        found = [one for part in each for one in transaction.scalars(part.limit(most))]
        return sorted(found, key=lambda one: -one.number)[:most]
    # Within a repository ids grow as numbers do; an account's are found by id.
    order = Contribution.number if account is None else Contribution.id
    return transaction.scalars(query.order_by(order.desc()).limit(most)).all()


def _account(transaction: Transaction, name: str) -> int:
    found = transaction.scalar(select(Account.id).where(Account.name == name))
    if found is None:
        raise Unknown("no such account", got=ascii(name[:100]))
    return found


def checks(transaction: Transaction, contribution: Contribution) -> Sequence[Check]:
    """A contribution's checks, in the order they are shown."""
    query = select(Check).where(Check.contribution_id == contribution.id).order_by(Check.place, Check.name)
    return transaction.scalars(query).all()


def comments(
    transaction: Transaction, contribution: Contribution, *, after: int = 0, limit: int = MOST
) -> Sequence[Comment]:
    """What was said of a contribution, and what happened to it, oldest first."""
    query = select(Comment).where(Comment.contribution_id == contribution.id, Comment.id > after)
    return transaction.scalars(query.order_by(Comment.id).limit(max(1, min(limit, MOST)))).all()


def said(contribution: Contribution) -> dict[str, Any]:
    """A contribution as JSON, without its checks and comments."""
    return _said(contribution, contribution.repository.full_name, contribution.account.name)


def _said(contribution: Contribution | Row[Any], repository: str, account: str) -> dict[str, Any]:
    return {
        "number": contribution.number,
        "repository": repository,
        "account": account,
        "state": contribution.state,
        "reason": contribution.reason,
        "branch": contribution.branch,
        "base": contribution.base,
        "source": contribution.source,
        "commit": contribution.commit,
        "content": contribution.content,
        "title": contribution.title,
        "message": contribution.message,
        "data": contribution.data,
        "licence": contribution.licence,
        "examples": contribution.examples,
        "metrics": contribution.metrics,
        "labels": contribution.labels,
        "signed": contribution.signature is not None,
        "fisher": contribution.statistics,
        "created": contribution.created,
        "updated": contribution.updated,
    }


def said_check(check: Check) -> dict[str, Any]:
    """A check as JSON."""
    return {"name": check.name, "state": check.state, "figure": check.figure, "detail": check.detail}


def said_comment(comment: Comment) -> dict[str, Any]:
    """A comment, or an event, as JSON; the hub itself has no account."""
    return {
        "id": comment.id,
        "account": None if comment.account is None else comment.account.name,
        "event": comment.event,
        "body": comment.body,
        "created": comment.created,
    }
