"""Contributions: offer, list, look at, talk about, label, withdraw, accept, refuse, try again."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field, StringConstraints
from starlette.responses import JSONResponse

from .. import contributions
from ..contributions import Offer, said, said_comment
from .depends import Contributes, Maintains, Reads, TheHub
from .values import After, Before, Body, Hash, Id, Limit, paged

router = APIRouter(prefix="/repositories/{owner}/{name}/contributions", tags=["contributions"])
Key = Annotated[str, StringConstraints(max_length=64)]
Text = Annotated[str, Field(max_length=20_000)]


class NewContribution(Body):
    """What is offered: exactly one of commit, weights and patch. See `contributions.Offer`."""

    title: Annotated[str, Field(min_length=1, max_length=200)]
    branch: Annotated[str, Field(max_length=200)] = "main"
    base: Hash | None = None
    commit: Hash | None = None
    weights: Annotated[dict[str, Key], Field(max_length=200, default_factory=dict)]
    patch: Key | None = None
    fisher: Hash | Annotated[dict[str, Key], Field(max_length=200)] | None = None
    message: Text = ""
    data: Text = ""
    licence: Annotated[str, Field(max_length=100)] = ""
    examples: Annotated[int | None, Field(ge=1, lt=2**62)] = None
    metrics: Annotated[dict[str, float], Field(max_length=100, default_factory=dict)]
    labels: Annotated[list[str], Field(max_length=20, default_factory=list)]
    signature: Annotated[str | None, Field(max_length=1 << 20)] = None
    nonce: Annotated[str, Field(max_length=64)] = ""


class Labels(Body):
    """Labels, in place of those there are."""

    labels: Annotated[list[str], Field(max_length=20)]


class Said(Body):
    """A comment."""

    body: Text


class Reason(Body):
    """Why."""

    reason: Annotated[str, Field(max_length=2000)]


@router.get("")
def index(
    hub: TheHub,
    seen: Reads,
    state: str | None = None,
    branch: str | None = None,
    account: str | None = None,
    before: Before = None,
    limit: Limit = 50,
) -> dict[str, Any]:
    """Newest first; `next` is the `before` of the page that follows."""
    with hub.database.reading() as transaction:
        found = contributions.page(
            transaction, seen.repository, state=state, branch=branch, account=account, before=before, limit=limit
        )
        return paged("contributions", found, said, limit, by="number")


@router.post("", status_code=201)
def offer(hub: TheHub, seen: Contributes, wanted: NewContribution) -> dict[str, Any]:
    """Offer one; the same nonce with the same content answers with the one that is there."""
    given = wanted.model_dump()
    with hub.database.writing() as transaction:
        made = contributions.offer(hub, transaction, seen, Offer(**given | {"labels": tuple(wanted.labels)}))
        return said(made)


@router.get("/{number}")
async def read(hub: TheHub, seen: Reads, number: Id) -> JSONResponse:
    """One, with its checks; comments and events are asked for beside it."""
    return JSONResponse(await contributions.whole(hub.database, seen.repository, number))


@router.patch("/{number}")
def label(hub: TheHub, seen: Contributes, number: Id, wanted: Labels) -> dict[str, Any]:
    """Give it other labels: its author, or a maintainer."""
    with hub.database.writing() as transaction:
        return said(contributions.label(transaction, seen, number, wanted.labels))


@router.get("/{number}/comments")
def comments(
    hub: TheHub,
    seen: Reads,
    number: Id,
    after: After = 0,
    limit: Limit = 100,
) -> dict[str, Any]:
    """What was said, and what happened, oldest first; `next` is the `after` of the page that follows."""
    with hub.database.reading() as transaction:
        found = contributions.find(transaction, seen.repository, number)
        rows = contributions.comments(transaction, found, after=after, limit=limit)
        return paged("comments", rows, said_comment, limit)


@router.post("/{number}/comments", status_code=201)
def comment(hub: TheHub, seen: Reads, number: Id, wanted: Said) -> dict[str, Any]:
    """Say something; anybody whom the hub knows."""
    with hub.database.writing() as transaction:
        return said_comment(contributions.comment(transaction, seen, number, wanted.body))


@router.post("/{number}/withdraw")
def withdraw(hub: TheHub, seen: Contributes, number: Id) -> dict[str, Any]:
    """Take it back: its author, or a maintainer."""
    with hub.database.writing() as transaction:
        return said(contributions.withdraw(transaction, seen, number))


@router.post("/{number}/accept")
def accept(hub: TheHub, seen: Maintains, number: Id) -> dict[str, Any]:
    """Say that it shall be fused."""
    with hub.database.writing() as transaction:
        return said(contributions.accept(transaction, seen, number))


@router.post("/{number}/refuse")
def refuse(hub: TheHub, seen: Maintains, number: Id, wanted: Reason) -> dict[str, Any]:
    """Refuse it."""
    with hub.database.writing() as transaction:
        return said(contributions.refuse(transaction, seen, number, wanted.reason))


@router.post("/{number}/retry")
def retry(hub: TheHub, seen: Contributes, number: Id) -> dict[str, Any]:
    """Have it looked at again: its author, or a maintainer."""
    with hub.database.writing() as transaction:
        return said(contributions.retry(hub, transaction, seen, number))
