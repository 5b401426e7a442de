"""Rounds and releases, as they are told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from sqlalchemy import select
from sqlalchemy.orm import Session as Transaction

from ..database import Branch, Release, Repository, Round
from ..faults import Unknown
from .stages import shares

Made = TypeVar("Made", Round, Release)


def newest(
    transaction: Transaction,
    table: type[Made],
    repository: Repository,
    *,
    branch: str | None = None,
    before: int | None = None,
    limit: int = 50,
) -> Sequence[Made]:
    """Rounds or releases of a repository, newest first."""
    query = select(table).where(table.repository_id == repository.id).order_by(table.id.desc()).limit(limit)
    if branch is not None:
        query = query.where(table.branch == branch)
    if before is not None:
        query = query.where(table.id < before)
    return transaction.scalars(query).all()


def release(transaction: Transaction, repository: Repository, version: str) -> Release:
    """A release by its version.

    Raises:
        Unknown: there is none.
    """
    query = select(Release).where(Release.repository_id == repository.id, Release.version == version)
    found = transaction.scalar(query)
    if found is None:
        raise Unknown("no such release", got=version[:40])
    return found


def policies(transaction: Transaction, repository: Repository) -> Sequence[Branch]:
    """Branches of a repository that have a policy."""
    return transaction.scalars(select(Branch).where(Branch.repository_id == repository.id).order_by(Branch.name)).all()


def said(round_: Round) -> dict[str, Any]:
    """A round as JSON."""
    return {
        "id": round_.id,
        "number": round_.number,
        "branch": round_.branch,
        "kind": round_.kind,
        "state": round_.state,
        "reason": round_.reason,
        "base": round_.base,
        "commit": round_.commit,
        "version": round_.version,
        "created": round_.created,
        "updated": round_.updated,
    }


def said_whole(transaction: Transaction, round_: Round) -> dict[str, Any]:
    """The same, with what went in, what the gate said, and how far it moved."""
    given = [
        {
            "contribution": one.contribution.number,
            "account": one.contribution.account.name,
            "title": one.contribution.title,
            "state": one.contribution.state,
            "weight": one.weight,
            "dropped": one.dropped,
        }
        for one in shares(transaction, round_)
    ]
    more = {"without": round_.plan.get("without"), "to": round_.plan.get("to")}
    whole = {"shares": given, "policy": round_.policy, "verdict": round_.verdict, "figures": round_.figures}
    return said(round_) | whole | {key: value for key, value in more.items() if value is not None}


def said_release(one: Release) -> dict[str, Any]:
    """A release as JSON."""
    return {
        "version": one.version,
        "branch": one.branch,
        "commit": one.commit,
        "round": one.round_id,
        "created": one.created,
    }


def said_policy(one: Branch) -> dict[str, Any]:
    """A branch's policy as JSON."""
    return {"branch": one.name, "policy": one.policy, "updated": one.updated, "paused": one.paused}
