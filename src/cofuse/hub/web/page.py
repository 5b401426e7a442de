"""A page as an answer: a template, what stands on every page, and the headers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Any
from urllib.parse import quote, urlencode

from fastapi import Request
from jinja2 import Environment, PackageLoader, StrictUndefined
from sqlalchemy.orm import Session as Transaction
from starlette.responses import HTMLResponse, RedirectResponse, Response

from ..access.roles import Role
from ..access.visitor import NOBODY, Visitor
from ..hub import Hub
from ..repositories import Seen, find
from .assets import asset
from .cookies import cookie_name, forget
from .words import FILTERS

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; img-src 'self' data:; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Vary": "Cookie, Accept",
}
# What a page says once something is done: a word in the address, never text from it.
DONE = {
    "accepted": "The contribution is accepted.",
    "refused": "The contribution is refused.",
    "withdrawn": "The contribution is withdrawn.",
    "commented": "Your comment is there.",
    "labelled": "The labels are saved.",
    "retried": "It is tried again.",
    "opened": "The round has begun.",
    "decided": "Your decision is recorded; the round goes on.",
    "revoked": "The revocation has begun: rounds are fused anew. It is below.",
    "rolled": "The rollback has begun. It is below.",
    "saved": "Saved.",
    "granted": "The role is given.",
    "ungranted": "The role is taken away.",
    "unmade": "The token is revoked: from now on nothing is done with it.",
    "account": "The account is made.",
    "signedout": "You are signed out.",
}
_LOCAL = re.compile(r"/(?![/\\])[!-\[\]-~]*")  # printable ASCII without a backslash, on this hub


@cache
def environment() -> Environment:
    """The templates: all values are escaped, and one that is missing is an error."""
    made = Environment(
        loader=PackageLoader("cofuse.hub.web"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    made.filters |= FILTERS
    made.globals |= {"css": asset("css"), "mark": asset("svg"), "link": link, "Role": Role}
    return made


def link(*parts: object, **query: object) -> str:
    """A path of this hub; each part is one, whatever it has in it.

    >>> link("org", "a/b?", 3, page=2, state=None)
    '/org/a%2Fb%3F/3?page=2'
    """
    path = "".join("/" + quote(str(part), safe="") for part in parts) or "/"
    asked = urlencode({key: value for key, value in query.items() if value not in (None, "")})
    return f"{path}?{asked}" if asked else path


def local(path: str | None, otherwise: str = "/") -> str:
    """A path of this hub to go to next; another site's address is not followed.

    >>> local("/org/model?page=2"), local("//elsewhere.example"), local("https://elsewhere.example"), local(None)
    ('/org/model?page=2', '/', '/', '/')
    """
    return path if path is not None and _LOCAL.fullmatch(path) else otherwise


def html(request: Request, visitor: Visitor, template: str, status: int, values: dict[str, Any]) -> Response:
    """A page."""
    text = (
        environment()
        .get_template(f"{template}.html.j2")
        .render(
            visitor=visitor,
            here=request.url.path + (f"?{request.url.query}" if request.url.query else ""),
            done=DONE.get(request.query_params.get("done", "")),
            **values,
        )
    )
    # Nothing of somebody who is signed in stays in a shared cache, or behind after signing out.
    keep = "private, no-cache" if visitor is NOBODY else "no-store"
    answer = HTMLResponse(text, status, HEADERS | {"Cache-Control": keep})
    if getattr(request.state, "forget", False):
        forget(request, answer, cookie_name(request))
    return answer


@dataclass(frozen=True, slots=True)
class Asked:
    """A page that is asked for: by whom, of which hub."""

    request: Request
    hub: Hub
    visitor: Visitor

    def show(self, template: str, status: int = 200, **values: Any) -> Response:
        """The page."""
        return html(self.request, self.visitor, template, status, values)

    def go(self, path: str, done: str | None = None) -> Response:
        """Go to a page, which says what is done."""
        to = local(path)
        mark = "&" if "?" in to else "?"
        return RedirectResponse(f"{to}{mark}done={done}" if done else to, 303, {"Cache-Control": "no-store"})

    @property
    def url(self) -> str:
        """How others reach this hub."""
        return (self.hub.settings.server.url or str(self.request.base_url)).rstrip("/")


@dataclass(frozen=True, slots=True)
class Within(Asked):
    """A page of a repository."""

    seen: Seen

    def show(self, template: str, status: int = 200, **values: Any) -> Response:
        """The page, which knows the repository and what may be done with it."""
        own = {"repository": self.seen.repository, "role": self.seen.role, "at": self.at, "url": self.url}
        return html(self.request, self.visitor, template, status, own | values)

    def now(self, transaction: Transaction) -> Seen:
        """The repository as the visitor has it at this moment, for changing it: a role may just have been taken away."""
        there = self.seen.repository
        return find(transaction, self.visitor, there.owner.name, there.name)

    def at(self, *parts: object, **query: object) -> str:
        """A path below the repository's."""
        return link(self.seen.repository.owner.name, self.seen.repository.name, *parts, **query)
