"""The reads that are asked for most, answered beside the framework, whose way to a route costs more than they do.

A row is a route of the API. Its function is called as the framework would call it, after the same dependency (who asks, how often,
what they see), so the answers are the same bytes; the route itself stays, for the API's description and for every path that is
not written in the plainest way.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable

from fastapi import APIRouter, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from ..errors import CofuseError
from .answers import answer
from .api import contributions, repositories
from .api.depends import reads
from .hub import Hub

# A route's router and path, and its function with what the path names beside the repository.
READS: tuple[tuple[APIRouter, str, Callable[..., Awaitable[Response]]], ...] = (
    (
        contributions.router,
        "/repositories/{owner}/{name}/contributions/{number}",
        lambda hub, seen, number: contributions.read(hub, seen, int(number)),
    ),
    (repositories.router, "/repositories/{owner}/{name}", lambda hub, seen: repositories.read(seen)),
)
# What is plain in a path; the rest is the framework's to read, or to refuse.
PLAIN = {"owner": "[A-Za-z0-9._-]+", "name": "[A-Za-z0-9._-]+", "number": "[1-9][0-9]{0,8}"}


class Direct:
    """ASGI middleware, within the `Gateway`.

    Args:
        app: answers what is not in the table.
        hub: whose.
        prefix: of the API.
    """

    def __init__(self, app: ASGIApp, hub: Hub, prefix: str) -> None:
        self._app, self._hub = app, hub
        self._reads = [
            (
                re.compile(prefix + re.sub(r"{(\w+)}", lambda part: f"(?P<{part[1]}>{PLAIN[part[1]]})", path)),
                next(route for route in router.routes if getattr(route, "path", None) == path),
                read,
            )
            for router, path, read in READS
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "http" and scope["method"] == "GET" and not scope.get("root_path"):
            for pattern, route, read in self._reads:
                found = pattern.fullmatch(scope["path"])
                if found is not None:
                    scope["route"] = route  # what figures are counted by
                    response = await self._response(Request(scope, receive, send), read, **found.groupdict())
                    await response(scope, receive, send)
                    return
        await self._app(scope, receive, send)

    async def _response(
        self, request: Request, read: Callable[..., Awaitable[Response]], owner: str, name: str, **rest: str
    ) -> Response:
        try:
            return await read(self._hub, await reads(request, owner, name), **rest)
        except CofuseError as error:
            return answer(error)
