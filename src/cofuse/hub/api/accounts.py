"""Accounts and their tokens; the audit log."""

from __future__ import annotations

import time
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import Field
from sqlalchemy import select

from ..access.audit import note
from ..access.roles import Role
from ..access.tokens import find_account, make_account, make_token, role_named
from ..database import Account, Audit, Token
from ..faults import Denied, Unknown
from .depends import Administers, Asks, TheHub
from .values import After, Before, Body, Id, Limit, paged

router = APIRouter(tags=["accounts"])


class NewToken(Body):
    """A token to be made."""

    scope: str = "contribute"
    label: Annotated[str, Field(max_length=200)] = ""
    days: Annotated[float | None, Field(gt=0, le=3650)] = None
    account: Annotated[str | None, Field(max_length=96)] = None


class NewAccount(Body):
    """An account to be made."""

    name: Annotated[str, Field(max_length=96)]
    role: str = "contribute"
    organisation: bool = False
    quota: Annotated[int | None, Field(ge=0)] = None


class AccountChange(Body):
    """What is to change of an account."""

    role: str | None = None
    quota: Annotated[int | None, Field(ge=0)] = None
    disabled: bool | None = None


@router.get("/me")
async def me(visitor: Asks) -> dict[str, Any]:
    """Who asks, and what they may do on the whole hub."""
    visitor.known()
    return {"name": visitor.name, "scope": visitor.scope.word, "role": visitor.role.word}


@router.get("/tokens")
def tokens(hub: TheHub, visitor: Asks) -> dict[str, Any]:
    """One's own tokens; their secrets are not kept."""
    own = visitor.known()
    with hub.database.reading() as transaction:
        found = transaction.scalars(select(Token).where(Token.account_id == own).order_by(Token.id))
        return {"tokens": [token_said(token) for token in found]}


@router.post("/tokens", status_code=201)
def create_token(hub: TheHub, visitor: Asks, wanted: NewToken) -> dict[str, Any]:
    """Make a token: of at most the scope of the one that asks, for oneself; administrators for anybody."""
    scope = role_named(wanted.scope)
    own = visitor.known()
    if scope > visitor.scope:
        raise Denied("a token cannot make one that may more", got=scope.word, expected=f"at most {visitor.scope.word}")
    with hub.database.writing() as transaction:
        account = transaction.get_one(Account, own)
        if wanted.account is not None and wanted.account != visitor.name:
            visitor.must(Role.ADMIN)
            account = _account(hub, transaction, wanted.account)
        token, secret = make_token(transaction, account, scope, label=wanted.label, days=wanted.days)
        note(transaction, visitor, "token.create", f"{account.name}/{token.id}", scope=scope.word)
    return {"id": token.id, "account": account.name, "scope": scope.word, "expires": token.expires, "token": secret}


@router.delete("/tokens/{token_id}", status_code=204)
def revoke(hub: TheHub, visitor: Asks, token_id: Id) -> None:
    """Revoke one's own token, or as an administrator anybody's; from now on nothing is done with it."""
    own = visitor.known()
    with hub.database.writing() as transaction:
        token = transaction.get(Token, token_id)
        if token is None or (token.account_id != own and visitor.role < Role.ADMIN):
            raise Unknown("no such token", got=token_id)
        token.revoked = token.revoked or time.time()
        note(transaction, visitor, "token.revoke", f"{token.account.name}/{token.id}")


@router.get("/accounts")
def accounts(
    hub: TheHub,
    visitor: Administers,
    after: After = 0,
    limit: Limit = 50,
) -> dict[str, Any]:
    """All accounts, in the order they were made."""
    with hub.database.reading() as transaction:
        found = transaction.scalars(select(Account).where(Account.id > after).order_by(Account.id).limit(limit)).all()
        return paged("accounts", found, account_said, limit)


@router.post("/accounts", status_code=201)
def create_account(hub: TheHub, visitor: Administers, wanted: NewAccount) -> dict[str, Any]:
    """Make an account."""
    role = role_named(wanted.role)
    with hub.database.writing() as transaction:
        made = make_account(transaction, wanted.name, role, organisation=wanted.organisation, quota=wanted.quota)
        note(transaction, visitor, "account.create", made.name, role=role.word)
    return account_said(made)


@router.patch("/accounts/{name}")
def change_account(hub: TheHub, visitor: Administers, name: str, wanted: AccountChange) -> dict[str, Any]:
    """Change what an account may do, how much it may keep, and whether it is let in."""
    role = None if wanted.role is None else role_named(wanted.role)
    with hub.database.writing() as transaction:
        found = _account(hub, transaction, name)
        found.role = found.role if role is None else role.word
        found.quota = found.quota if wanted.quota is None else wanted.quota
        found.disabled = found.disabled if wanted.disabled is None else wanted.disabled
        note(transaction, visitor, "account.change", name, **wanted.model_dump(exclude_none=True))
    return account_said(found)


@router.get("/audit")
def audit(
    hub: TheHub,
    visitor: Administers,
    before: Before = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
) -> dict[str, Any]:
    """What was done, newest first."""
    query = select(Audit).order_by(Audit.id.desc()).limit(limit)
    with hub.database.reading() as transaction:
        found = transaction.scalars(query if before is None else query.where(Audit.id < before)).all()
        return paged("audit", found, audit_said, limit)


def audit_said(row: Audit) -> dict[str, Any]:
    """A line of the audit log as JSON."""
    return {
        "id": row.id,
        "at": row.at,
        "who": row.account.name if row.account else None,
        "action": row.action,
        "target": row.target,
        "detail": row.detail,
    }


def token_said(token: Token) -> dict[str, Any]:
    """A token as JSON, without its secret."""
    return {
        "id": token.id,
        "shown": token.shown,
        "label": token.label,
        "scope": token.scope,
        "created": token.created,
        "expires": token.expires,
        "revoked": token.revoked,
    }


def account_said(account: Account) -> dict[str, Any]:
    """An account as JSON."""
    return {
        "name": account.name,
        "role": account.role,
        "organisation": account.organisation,
        "quota": account.quota,
        "disabled": account.disabled,
        "created": account.created,
    }


def _account(hub: TheHub, transaction: Any, name: str) -> Account:
    found = find_account(transaction, name)
    if found is None:
        raise Unknown("no such account", got=name[:100])
    return found
