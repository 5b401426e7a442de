"""Signing in with a token, signing out, and one's own tokens."""

from __future__ import annotations

import secrets

from fastapi import APIRouter, Request
from sqlalchemy import select
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from ..access.roles import WORDS, Role
from ..access.sessions import DAYS, begin, end, must_match
from ..access.tokens import PREFIX, digest
from ..access.visitor import Visitor
from ..api import accounts
from ..api.depends import address_of, identified
from ..api.values import Id
from ..database import Token
from ..faults import Denied, Unauthenticated
from ..hub import Hub
from .cookies import cookie_name, forget, set_cookie
from .depends import Anybody, Known, Ours, Sent
from .page import Asked, link, local

router = APIRouter(include_in_schema=False)
MINUTES = 30  # that the form to sign in is good for


@router.get("/signin")
async def form(page: Anybody, to: str = "/") -> Response:
    """The form to sign in."""
    return _form(page, local(to))


@router.post("/signin")
async def sign_in(page: Anybody, sent: Ours) -> Response:
    """Sign in: a good token makes a session; what was there before ends.

    Without a session there is nothing yet that a form could be bound to, so it is bound to a cookie of its own: otherwise
    another site could sign somebody in as somebody else, and see what they do.
    """
    request, to = page.request, local(sent.text("to", 2000))
    bound = request.cookies.get(cookie_name(request, "-form"))
    try:
        must_match(None if bound is None else digest(bound), sent.fields.get("form"))
    except Denied as error:
        return _form(page, to, 403, error.what)
    secret = sent.text("token", 200)
    if not secret.startswith(PREFIX):
        return _form(page, to, 403, f"That is not a token: they begin with {PREFIX}")
    try:
        visitor = await identified(page.hub, secret, address_of(request), page.hub.visitors.token)
    except Unauthenticated:
        return _form(page, to, 403, "The token is not good: it may be mistyped, revoked or expired.")
    cookie = await run_in_threadpool(_begin, page.hub, visitor, request.cookies.get(cookie_name(request)))
    answer = page.go(to)
    set_cookie(request, answer, cookie_name(request), cookie, DAYS * 86400)
    forget(request, answer, cookie_name(request, "-form"))
    return answer


@router.post("/signout")
def sign_out(page: Known, sent: Sent) -> Response:
    """Sign out."""
    cookie = page.request.cookies.get(cookie_name(page.request), "")
    with page.hub.database.writing() as transaction:
        end(transaction, cookie)
    answer = page.go("/", "signedout")
    forget(page.request, answer, cookie_name(page.request))
    return answer


@router.get("/settings")
def own(page: Known) -> Response:
    """One's own tokens."""
    return _own(page)


@router.post("/settings/tokens")
def create(page: Known, sent: Sent) -> Response:
    """Make a token, and show it this once."""
    wanted = accounts.NewToken(
        scope=sent.text("scope", 16, needed=True),
        label=sent.text("label", 200),
        days=sent.number("days", most=3650) or None,
    )
    made = accounts.create_token(page.hub, page.visitor, wanted)
    return _own(page, made)


@router.post("/settings/tokens/{token_id}/revoke")
def revoke(page: Known, sent: Sent, token_id: Id) -> Response:
    """Revoke a token; sessions that it began end with it."""
    accounts.revoke(page.hub, page.visitor, token_id)
    return page.go("/signin" if token_id == page.visitor.token else "/settings", "unmade")


def _own(page: Asked, made: dict[str, object] | None = None) -> Response:
    query = select(Token).where(Token.account_id == page.visitor.account).order_by(Token.id.desc()).limit(200)
    with page.hub.database.reading() as transaction:
        tokens = list(transaction.scalars(query))
    scopes = [word for word in WORDS if Role.of(word) <= page.visitor.scope]
    return page.show("tokens", tokens=tokens, scopes=scopes, made=made)


def _form(page: Asked, to: str, status: int = 200, problem: str | None = None) -> Response:
    cookie = secrets.token_urlsafe(32)
    answer = page.show("signin", status, to=to, form=digest(cookie), problem=problem)
    answer.headers["Cache-Control"] = "no-store"
    set_cookie(page.request, answer, cookie_name(page.request, "-form"), cookie, MINUTES * 60)
    return answer


def _begin(hub: Hub, visitor: Visitor, before: str | None) -> str:
    with hub.database.writing() as transaction:
        if before:
            end(transaction, before)
        return begin(transaction, visitor)


def signin_path(request: Request) -> str:
    """Where to sign in, and to come back from."""
    here = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    return link("signin", to=here if request.method == "GET" else "/")
