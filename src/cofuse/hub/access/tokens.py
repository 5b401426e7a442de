"""Tokens: made, shown once, kept as a hash, and gone at once when revoked."""

from __future__ import annotations

import hashlib
import re
import secrets
import time

from sqlalchemy import select
from sqlalchemy.orm import Session as Transaction

from ..database import Account, Token
from ..faults import Conflict, Invalid
from .roles import WORDS, Role

PREFIX = "cofuse_"
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?")
# First parts of paths, which an account of that name would hide.
RESERVED = frozenset(
    [
        "api",
        "static",
        "metrics",
        "healthz",
        "readyz",
        "docs",
        "openapi.json",
        "signin",
        "signout",
        "admin",
        "leaderboard",
        "models",
        "accounts",
        "robots.txt",
        "favicon.ico",
        "store",
        "lfs",
        "xet",
        "new",
        "settings",
        "spaces",
        "datasets",
        "v1",
    ]
)


def digest(secret: str) -> str:
    """What is kept of a secret. It has 256 random bits, so no salt or slow hash is needed.

    >>> len(digest("cofuse_x"))
    64
    """
    return hashlib.sha256(secret.encode()).hexdigest()


def check_name(name: str, what: str = "account") -> str:
    """Refuse a name that is no part of a path, or could be taken for another thing.

    Raises:
        Invalid: it is one.
    """
    if not _NAME.fullmatch(name) or ".." in name or "--" in name or name.endswith((".git", ".lock")):
        raise Invalid(
            f"not a name for {what}",
            got=ascii(name[:80]),
            expected="1 to 96 letters, digits, . _ and -, first and last a letter or digit",
        )
    if what != "repository" and name.lower() in RESERVED:
        raise Invalid(f"not a name for {what}", got=name, expected="one that the hub does not use itself")
    return name


def make_account(
    transaction: Transaction, name: str, role: Role, *, organisation: bool = False, quota: int | None = None
) -> Account:
    """Make an account.

    Raises:
        Conflict: there is one of that name.
        Invalid: the name is not allowed.
    """
    check_name(name)
    if find_account(transaction, name) is not None:
        raise Conflict("there is an account of that name", got=name)
    account = Account(
        name=name, role=role.word, organisation=organisation, quota=quota, created=time.time(), disabled=False
    )
    transaction.add(account)
    transaction.flush()
    return account


def find_account(transaction: Transaction, name: str) -> Account | None:
    """An account by its name."""
    return transaction.scalar(select(Account).where(Account.name == name))


def make_token(
    transaction: Transaction, account: Account, scope: Role, *, label: str = "", days: float | None = None
) -> tuple[Token, str]:
    """Make a token; its secret is never to be had again.

    Args:
        transaction: where.
        account: whose.
        scope: the most that it may do, whatever its account may.
        label: what it is for.
        days: that it is good for; for ever when None.
    """
    secret = PREFIX + secrets.token_urlsafe(32)
    now = time.time()
    token = Token(
        account_id=account.id,
        hash=digest(secret),
        shown=secret[: len(PREFIX) + 4],
        label=label[:200],
        scope=scope.word,
        created=now,
        expires=None if days is None else now + days * 86400,
    )
    token.account = account
    transaction.add(token)
    transaction.flush()
    return token, secret


def good(token: Token, now: float) -> bool:
    """Whether a token may be used now."""
    return token.revoked is None and (token.expires is None or token.expires > now) and not token.account.disabled


def role_named(word: str) -> Role:
    """The role that a word names.

    Raises:
        Invalid: none.
    """
    if word not in WORDS:
        raise Invalid("not a role", got=ascii(word[:40]), expected=", ".join(WORDS))
    return Role.of(word)
