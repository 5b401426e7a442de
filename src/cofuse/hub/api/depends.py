"""What routes are given: the hub, who asks, and the repository that the path names.

    @router.get("/repositories/{owner}/{name}/rounds")
    def rounds(hub: TheHub, seen: Reads) -> ...

`Reads`, `Contributes` and `Maintains` are the repository as the visitor has it, refused below that role; `Asks` is the visitor
alone; `Administers` one that administers the hub.
"""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import Depends, Request
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import State

from ..access.roles import Role
from ..access.visitor import NOBODY, Visitor
from ..faults import Unauthenticated
from ..hub import Hub
from ..repositories import Seen


def the_hub(request: Request) -> Hub:
    """The hub that answers."""
    state: State = request.app.state
    hub: Hub = state.hub
    return hub


def address_of(request: Request) -> str:
    """Where a request comes from; what a proxy says only where settings say that there is one."""
    said = request.headers.get("x-forwarded-for") if the_hub(request).settings.server.proxies else None
    if said:
        return said.rpartition(",")[2].strip()
    return request.client.host if request.client else "nowhere"


def secret_of(request: Request) -> str | None:
    """The token that a request brings: as a bearer, or as the password that git's clients send."""
    scheme, _, rest = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return rest.strip() or None
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(rest, validate=True).decode().partition(":")[2] or None
        except ValueError:  # no base64, or no UTF-8 within
            return "malformed"
    return None


async def visit(request: Request) -> Visitor:
    """Who asks. Cookies count for nothing here, so another site's page cannot ask in somebody's name.

    Raises:
        Unauthenticated: a token came that is not good.
        TooOften: too many requests, or too many wrong tokens.
    """
    known: Visitor | None = request.scope.get("visitor")
    if known is not None:
        return known
    hub, secret, address = the_hub(request), secret_of(request), address_of(request)
    if secret is None:
        hub.requests.must(address)
        visitor = NOBODY
    else:
        visitor = await identified(hub, secret, address, hub.visitors.token)
        hub.requests.must(f"token {visitor.token}")
    request.scope["visitor"] = visitor
    return visitor


async def identified(hub: Hub, secret: str, address: str, look: Callable[[str], Visitor | None]) -> Visitor:
    """Whose a secret is; whoever guesses has to wait.

    Raises:
        Unauthenticated: nobody's.
        TooOften: too many wrong ones came from this address.
    """
    known = hub.visitors.remembered(secret)
    if known is None:
        if hub.failures.empty(address):
            raise hub.failures.error()
        known = (await run_in_threadpool(look, secret),)
    (visitor,) = known
    if visitor is None:
        hub.failures.must(address)
        raise Unauthenticated("the token is not good", hint="it may be mistyped, revoked or expired: cofuse login URL")
    return visitor


async def given(request: Request) -> Hub:
    """The hub; `async`, because FastAPI hands what is not to a thread, which costs more than a read of the database."""
    return the_hub(request)


TheHub = Annotated[Hub, Depends(given)]
Asks = Annotated[Visitor, Depends(visit)]


async def administrator(visitor: Asks) -> Visitor:
    """Who asks, an administrator."""
    visitor.must(Role.ADMIN)
    return visitor


Administers = Annotated[Visitor, Depends(administrator)]


def seen_by(role: Role) -> Callable[..., Awaitable[Seen]]:
    """A dependency: the repository of the path, for visitors of a role."""

    # Asks for the hub and the visitor itself: each dependency that FastAPI resolves costs as much as a read.
    async def seen(request: Request, owner: str, name: str) -> Seen:
        hub, visitor = the_hub(request), await visit(request)
        found = hub.known(visitor, owner, name)
        if found is None:
            found = await run_in_threadpool(hub.look, visitor, owner, name)
        found.must(role)
        return found

    return seen


reads = seen_by(Role.READ)
Reads = Annotated[Seen, Depends(reads)]
Contributes = Annotated[Seen, Depends(seen_by(Role.CONTRIBUTE))]
Maintains = Annotated[Seen, Depends(seen_by(Role.MAINTAIN))]
