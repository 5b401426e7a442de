"""Errors as answers: one JSON object, a status, and the headers that Hugging Face's clients read."""

from __future__ import annotations

import json

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from ..errors import CheckpointError, CofuseError, DocumentError, FullError, FuseError, PatchError, RefError
from .faults import Fault, TooOften, Unauthenticated
from .logs import LOG
from .web.errors import as_page, wants_page

# Errors of other rooms that are the sender's; all others are the hub's own.
STATUSES: dict[type[CofuseError], int] = {
    CheckpointError: 422,
    PatchError: 422,
    DocumentError: 422,
    FuseError: 422,
    FullError: 507,
    RefError: 404,
}


def answer(error: CofuseError) -> Response:
    """An error as it is sent."""
    status = error.status if isinstance(error, Fault) else _status(error)
    if status == 500:
        LOG.error("failed", extra={"error": error.line})
        return JSONResponse({"error": "the hub failed", "hint": "its operator finds the reason in the log"}, status)
    headers = {"X-Error-Message": _header(error.what)}
    if isinstance(error, Fault) and error.code is not None:
        headers["X-Error-Code"] = error.code
    if isinstance(error, Unauthenticated):
        headers["WWW-Authenticate"] = 'Bearer realm="cofuse"'
    if isinstance(error, TooOften) and error.hint:
        headers["Retry-After"] = "".join(c for c in error.hint if c.isdigit()) or "1"
    # Where a file lies on the hub is nobody's business.
    where = error.where if isinstance(error, Fault | DocumentError) else None
    said = {"error": error.what, "where": where, "got": error.got, "expected": error.expected, "hint": error.hint}
    return JSONResponse({key: value for key, value in said.items() if value}, status, headers)


def install(app: FastAPI) -> None:
    """Make an application answer like this."""

    @app.exception_handler(CofuseError)
    async def _ours(request: Request, error: CofuseError) -> Response:
        return _as_asked(request, answer(error))

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        said = {"error": "the request is wrong", "where": place, "expected": first["msg"]}
        return _as_asked(request, JSONResponse(said, 422))

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> Response:
        said = {"error": str(error.detail).lower()}
        return _as_asked(request, JSONResponse(said, error.status_code, error.headers))

    @app.exception_handler(Exception)
    async def _failed(request: Request, error: Exception) -> Response:
        said = {"error": "the hub failed", "hint": "its operator finds the reason in the log"}
        return _as_asked(request, JSONResponse(said, 500))


def _as_asked(request: Request, found: Response) -> Response:
    return as_page(request, found, json.loads(bytes(found.body))) if wants_page(request) else found


def _status(error: CofuseError) -> int:
    return next((status for kind, status in STATUSES.items() if isinstance(error, kind)), 500)


def _header(text: str) -> str:
    return text.encode("ascii", "replace").decode()[:200]
