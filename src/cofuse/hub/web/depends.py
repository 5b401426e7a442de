"""What routes of pages are given; like those of the API, but cookies count here, and tokens do not.

@router.get("/{owner}/{name}/rounds")
def rounds(page: Reads) -> Response: ...

@router.post("/{owner}/{name}/settings")
def change(page: Maintains, form: Sent) -> Response: ...
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from starlette.concurrency import run_in_threadpool

from ..access.roles import Role
from ..access.sessions import must_be_ours, must_match, named
from ..access.visitor import NOBODY, Visitor
from ..api.depends import address_of, identified, the_hub
from ..faults import Invalid, Unauthenticated
from ..hub import Hub
from .cookies import cookie_name
from .page import Asked, Within

_FIELDS = 100  # of a form
_BREAKS = re.compile(r"\r\n?")
_UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")  # no text has these; PostgreSQL keeps none of the first


def hosts(request: Request) -> set[str]:
    """Host and port under which this hub is reached."""
    url = the_hub(request).settings.server.url or ""
    return {request.headers.get("host", "").lower(), url.partition("://")[2].partition("/")[0].lower()} - {""}


async def visit(request: Request) -> Visitor:
    """Who asks, by the cookie; one that is not good any more is nobody.

    Raises:
        TooOften: too many requests, or too many wrong cookies.
    """
    hub, address = the_hub(request), address_of(request)
    cookie = request.cookies.get(cookie_name(request))
    visitor = NOBODY
    if cookie:
        try:
            visitor = await identified(hub, named(cookie), address, hub.visitors.session)
        except Unauthenticated:
            request.state.forget = True
    request.state.visitor = visitor
    hub.requests.must(address if visitor is NOBODY else f"token {visitor.token}")
    return visitor


Visits = Annotated[Visitor, Depends(visit)]


async def asked(request: Request, visitor: Visits) -> Asked:
    """A page, for anybody."""
    return Asked(request, the_hub(request), visitor)


async def known(request: Request, visitor: Visits) -> Asked:
    """A page for who is signed in."""
    visitor.known()
    return Asked(request, the_hub(request), visitor)


async def administers(request: Request, visitor: Visits) -> Asked:
    """A page for who administers the hub."""
    visitor.must(Role.ADMIN)
    return Asked(request, the_hub(request), visitor)


def within(role: Role) -> Callable[..., Awaitable[Within]]:
    """A dependency: a page of the repository of the path, for visitors of a role."""

    async def found(request: Request, visitor: Visits, owner: str, name: str) -> Within:
        hub: Hub = the_hub(request)
        seen = hub.known(visitor, owner, name)
        if seen is None:
            seen = await run_in_threadpool(hub.look, visitor, owner, name)
        seen.must(role)
        return Within(request, hub, visitor, seen)

    return found


@dataclass(frozen=True, slots=True)
class Form:
    """What a form sent: text by field, with one kind of line break and nothing that cannot be seen."""

    fields: Mapping[str, str]

    def text(self, name: str, most: int, *, needed: bool = False) -> str:
        """A field; empty when it was not sent.

        Raises:
            Invalid: it is longer than `most` characters, or empty although needed.
        """
        found = self.fields.get(name, "").rstrip().lstrip("\n")
        if "\n" not in found:  # the lines of YAML stand where they stand
            found = found.strip()
        if len(found) > most:
            raise Invalid(f"the {name} is too long", got=f"{len(found)} characters", expected=f"at most {most}")
        if needed and not found:
            raise Invalid(f"the {name} is missing", hint="go back, and fill it in")
        return found

    def number(self, name: str, *, most: float = 2**62) -> float | None:
        """A number that is not negative; None when it was left empty.

        Raises:
            Invalid: it is another thing.
        """
        found = self.text(name, 40)
        if not found:
            return None
        try:
            value = float(found)
        except ValueError:
            value = -1.0
        if not 0 <= value <= most:
            raise Invalid(f"the {name} is not a number that can be", got=ascii(found), expected=f"0 to {most:g}")
        return value

    def ticked(self, name: str) -> bool:
        """Whether a box is ticked."""
        return name in self.fields

    def confirmed(self) -> None:
        """Refuse what changes much and was not confirmed.

        Raises:
            Invalid: it was not.
        """
        if not self.ticked("confirm"):
            raise Invalid("not confirmed", hint="go back, and tick the box that says that you mean it")


async def read_form(request: Request) -> Form:
    """A form, as it came.

    Raises:
        Invalid: it is not one.
    """
    if not request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
        raise Invalid("not a form", expected="application/x-www-form-urlencoded")
    async with request.form(max_files=0, max_fields=_FIELDS) as sent:
        fields = {
            key: _UNSEEN.sub("", _BREAKS.sub("\n", value)) for key, value in sent.items() if isinstance(value, str)
        }
    return Form(fields)


async def ours(request: Request) -> Form:
    """A form that no other site has sent.

    Raises:
        Denied: another has.
    """
    must_be_ours(request.headers.get("sec-fetch-site"), request.headers.get("origin"), hosts(request))
    return await read_form(request)


async def sent(visitor: Visits, form: Annotated[Form, Depends(ours)]) -> Form:
    """A form that a page of the visitor's own session has sent.

    Raises:
        Denied: another has.
    """
    visitor.known()
    must_match(visitor.csrf, form.fields.get("csrf"))
    return form


Anybody = Annotated[Asked, Depends(asked)]
Known = Annotated[Asked, Depends(known)]
Administers = Annotated[Asked, Depends(administers)]
Reads = Annotated[Within, Depends(within(Role.READ))]
Contributes = Annotated[Within, Depends(within(Role.CONTRIBUTE))]
Maintains = Annotated[Within, Depends(within(Role.MAINTAIN))]
Ours = Annotated[Form, Depends(ours)]
Sent = Annotated[Form, Depends(sent)]
