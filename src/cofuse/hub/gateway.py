"""What every request passes: bodies of bounded size, security headers, a log line, figures."""

from __future__ import annotations

import logging
import re
import time
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .answers import answer
from .faults import TooLarge
from .hub import Hub
from .logs import LOG

# Routes that take long bodies as they come, and bound them themselves.
STREAMED = re.compile(
    r"/api/v1/uploads/|/api/v1/repositories/[^/]+/[^/]+/store/objects$|/api/models/[^/]+/[^/]+/commit/|/lfs/[^/]+/\d|/xet/"
)
HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),
    (b"x-frame-options", b"DENY"),
)
CSP = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")


class Gateway:
    """ASGI middleware; a plain one, because those that wrap responses cost a task for each request."""

    def __init__(self, app: ASGIApp, hub: Hub) -> None:
        self._app, self._hub = app, hub

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status, taken = time.perf_counter(), 500, 0
        most = None if STREAMED.match(scope["path"]) else self._hub.settings.limits.body

        async def bounded() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if most is not None and taken > most:
                raise TooLarge("the request is too large", expected=f"at most {most} bytes")
            return message

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers: list[Any] = list(message.get("headers", ()))
                there = {name for name, _ in headers}
                headers += [pair for pair in (*HEADERS, CSP) if pair[0] not in there]
                message = {**message, "headers": headers}
            await send(message)

        try:
            await self._app(scope, bounded, noted)
        except TooLarge as error:
            await answer(error)(scope, receive, noted)
        except Exception:
            LOG.exception("failed", extra={"route": getattr(scope.get("route"), "path", "none")})  # a mistake of ours
            raise
        finally:
            seconds = time.perf_counter() - began
            route = getattr(scope.get("route"), "path", "none")
            self._hub.metrics.answered(scope["method"], route, status, seconds=seconds, received=taken)
            if status >= 500 or seconds > 1:
                row = {"method": scope["method"], "route": route, "status": status, "seconds": round(seconds, 4)}
                LOG.log(logging.ERROR if status >= 500 else logging.INFO, "request", extra=row)
