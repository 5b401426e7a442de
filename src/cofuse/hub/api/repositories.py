"""Repositories: list, make, change, remove, grant."""

from __future__ import annotations

import time
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import Field
from sqlalchemy import select
from starlette.responses import JSONResponse

from ..access.audit import note
from ..access.tokens import find_account, role_named
from ..database import Account, Grant, Repository
from ..faults import Unknown
from ..repositories import make, visible
from .depends import Asks, Maintains, Reads, TheHub
from .values import After, Body, Limit, paged

router = APIRouter(prefix="/repositories", tags=["repositories"])


class NewRepository(Body):
    """A repository to be made."""

    name: Annotated[str, Field(max_length=96)]
    owner: Annotated[str | None, Field(max_length=96)] = None
    private: bool = False
    description: Annotated[str, Field(max_length=2000)] = ""


class Change(Body):
    """What is to change of a repository."""

    private: bool | None = None
    description: Annotated[str | None, Field(max_length=2000)] = None


class Role(Body):
    """A role."""

    role: str


def said(repository: Repository) -> dict[str, Any]:
    """A repository as JSON."""
    return {
        "name": repository.full_name,
        "private": repository.private,
        "description": repository.description,
        "suite": repository.suite_hash,
        "bytes": repository.bytes,
        "downloads": repository.downloads,
        "created": repository.created,
        "updated": repository.updated,
    }


@router.get("")
def list_repositories(
    hub: TheHub,
    visitor: Asks,
    owner: str | None = None,
    search: Annotated[str | None, Query(max_length=100)] = None,
    after: After = 0,
    limit: Limit = 50,
) -> dict[str, Any]:
    """Those that the visitor may see, in the order they were made; `next` is the `after` of the page that follows."""
    query = visible(visitor).where(Repository.id > after).order_by(Repository.id).limit(limit)
    if owner is not None:
        query = query.where(Account.name == owner)
    if search:
        query = query.where(Repository.name.icontains(search, autoescape=True))
    with hub.database.reading() as transaction:
        return paged("repositories", transaction.scalars(query).all(), said, limit)


@router.post("", status_code=201)
def create(hub: TheHub, visitor: Asks, wanted: NewRepository) -> dict[str, Any]:
    """Make one."""
    with hub.database.writing() as transaction:
        made = make(
            transaction,
            visitor,
            hub.repositories,
            wanted.name,
            owner=wanted.owner,
            private=wanted.private,
            description=wanted.description,
        )
        hub.keep(made)
    return said(made)


@router.get("/{owner}/{name}")
async def read(seen: Reads) -> JSONResponse:
    """One."""
    return JSONResponse(said(seen.repository) | {"role": seen.role.word})


@router.patch("/{owner}/{name}")
def change(hub: TheHub, seen: Maintains, wanted: Change) -> dict[str, Any]:
    """Change who sees it, or what it says of itself."""
    with hub.database.writing() as transaction:
        found = transaction.get_one(Repository, seen.repository.id)
        for key, value in wanted.model_dump(exclude_none=True).items():
            setattr(found, key, value)
        found.updated = time.time()
        note(
            transaction, seen.visitor, "repository.change", found.full_name, repository=found.id, **wanted.model_dump()
        )
    return said(found)


@router.put("/{owner}/{name}/grants/{account}")
def grant(hub: TheHub, seen: Maintains, account: str, wanted: Role) -> dict[str, str]:
    """Give an account a role here."""
    role = role_named(wanted.role)
    seen.must(role)  # nobody gives more than they have
    with hub.database.writing() as transaction:
        found = find_account(transaction, account)
        if found is None:
            raise Unknown("no such account", got=account[:100])
        transaction.merge(Grant(repository_id=seen.repository.id, account_id=found.id, role=role.word))
        note(transaction, seen.visitor, "grant", found.name, repository=seen.repository.id, role=role.word)
    return {"account": found.name, "role": role.word}


@router.get("/{owner}/{name}/grants")
def grants(hub: TheHub, seen: Maintains) -> dict[str, str]:
    """Who has which role here."""
    query = (
        select(Account.name, Grant.role)
        .join(Grant, Grant.account_id == Account.id)
        .where(Grant.repository_id == seen.repository.id)
    )
    with hub.database.reading() as transaction:
        return {row.name: row.role for row in transaction.execute(query)}


@router.delete("/{owner}/{name}/grants/{account}", status_code=204)
def withdraw(hub: TheHub, seen: Maintains, account: str) -> None:
    """Take a role away."""
    with hub.database.writing() as transaction:
        found = find_account(transaction, account)
        given = None if found is None else transaction.get(Grant, (seen.repository.id, found.id))
        if given is None:
            raise Unknown("this account has no role here", got=account[:100])
        transaction.delete(given)
        note(transaction, seen.visitor, "grant.withdraw", account, repository=seen.repository.id)
