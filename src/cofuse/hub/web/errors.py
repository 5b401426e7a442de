"""Errors as pages, for those who read them in a browser."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import Request
from starlette.responses import RedirectResponse, Response

from ..access.visitor import NOBODY
from .page import html
from .signin import signin_path

_TITLES = {
    400: "That cannot be done",
    401: "Sign in first",
    403: "You may not do this",
    404: "There is no such thing",
    409: "It has changed meanwhile",
    413: "That is too much",
    422: "That cannot be taken as it is",
    429: "Too many requests",
    500: "The hub failed",
    507: "There is no room left",
}


def wants_page(request: Request) -> bool:
    """Whether it is a browser that asks for a page."""
    return "text/html" in request.headers.get("accept", "") and not request.url.path.startswith("/api/")


def as_page(request: Request, answer: Response, said: dict[str, str]) -> Response:
    """An error as a page: the status and the headers of its answer, and what it says in words.

    Args:
        request: what was asked.
        answer: as a program would be answered.
        said: `error`, and where there is more to say `where`, `got`, `expected` and `hint`.
    """
    status = answer.status_code
    if status == 401 and request.method == "GET":
        found: Response = RedirectResponse(signin_path(request), 303, {"Cache-Control": "no-store"})
    else:
        title = _TITLES.get(status) or HTTPStatus(status).phrase
        found = html(
            request,
            getattr(request.state, "visitor", NOBODY),
            "error",
            status,
            {"title": title, "status": status, "said": said},
        )
    for name in ("retry-after", "x-error-code"):
        if name in answer.headers:
            found.headers[name] = answer.headers[name]
    return found
