"""Sessions of the web pages: begun with a token, kept as the hash of a random secret, ended with the token.

A form proves that it is the hub's own in two ways: it carries what only the session's pages show (`csrf`), and the browser
does not say that another site sent it.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Collection
from hmac import compare_digest
from urllib.parse import urlsplit

from sqlalchemy import delete
from sqlalchemy.orm import Session as Transaction

from ..database import Session
from ..faults import Denied
from .audit import note
from .tokens import digest
from .visitor import Visitor

DAYS = 14  # that a session lasts, unless its token ends before
# Before the secret of a cookie, so that it is good for nothing as a token, nor a token as a cookie.
_OF_COOKIE = "session "


def named(cookie: str) -> str:
    """The secret that a session is found by, from what its cookie holds."""
    return _OF_COOKIE + cookie


def begin(transaction: Transaction, visitor: Visitor) -> str:
    """Begin a session; gives what its cookie holds, which is not kept.

    Args:
        transaction: where.
        visitor: who brought a good token.
    """
    visitor.known()
    cookie, now = secrets.token_urlsafe(32), time.time()
    transaction.execute(delete(Session).where(Session.expires < now))
    transaction.add(
        Session(
            hash=digest(named(cookie)),
            token_id=visitor.token,
            csrf=secrets.token_urlsafe(32),
            created=now,
            expires=now + DAYS * 86400,
        )
    )
    note(transaction, visitor, "session.begin", visitor.name)
    return cookie


def end(transaction: Transaction, cookie: str) -> None:
    """End a session; one that is not there has ended."""
    transaction.execute(delete(Session).where(Session.hash == digest(named(cookie))))


def must_match(expected: str | None, sent: str | None) -> None:
    """Refuse a form that does not carry what the hub gave out with it.

    Raises:
        Denied: it does not.
    """
    if not expected or not sent or not compare_digest(expected.encode(), sent.encode()):
        raise Denied("the form is too old, or not one of this hub's", hint="load the page again, and send it once more")


def must_be_ours(site: str | None, origin: str | None, hosts: Collection[str]) -> None:
    """Refuse what a browser says another site's page has sent.

    Args:
        site: Sec-Fetch-Site; browsers that are older than it do not send it.
        origin: Origin.
        hosts: host and port under which this hub is reached.

    Raises:
        Denied: another site sent it.

    >>> must_be_ours("same-origin", "https://hub.example", ["hub.example"])
    >>> must_be_ours(None, "https://elsewhere.example", ["hub.example"])
    Traceback (most recent call last):
    cofuse.hub.faults.Denied: the form was sent by another site
      to do:    send it from the hub's own page
    """
    foreign = site not in (None, "same-origin", "none") or (
        origin is not None and urlsplit(origin).netloc.lower() not in hosts
    )
    if foreign:
        raise Denied("the form was sent by another site", hint="send it from the hub's own page")
