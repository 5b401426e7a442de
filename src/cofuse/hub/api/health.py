"""Whether the hub is up, whether it can work, and its figures for Prometheus."""

from __future__ import annotations

import shutil
from typing import Any

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from starlette.responses import JSONResponse, PlainTextResponse, Response

from .depends import TheHub

router = APIRouter(tags=["health"])
ROOM = 64 * 1024 * 1024  # bytes of free disk below which the hub is not ready


@router.get("/healthz", response_class=PlainTextResponse)
async def healthz() -> str:
    """Whether the hub answers."""
    return "ok\n"


@router.get("/readyz")
def readyz(hub: TheHub) -> Response:
    """Whether the hub can do its work: its database answers, and there is room on its disk."""
    state: dict[str, Any] = {}
    try:
        with hub.database.reading() as transaction:
            transaction.execute(text("SELECT 1"))
        state["database"] = "ok"
    except SQLAlchemyError as error:
        state["database"] = type(error).__name__
    try:
        free = shutil.disk_usage(hub.repositories).free
        state["disk"] = "ok" if free > ROOM else "full"
    except OSError as error:
        state["disk"] = type(error).__name__
    ready = all(value == "ok" for value in state.values())
    return JSONResponse({"ready": ready, **state}, 200 if ready else 503)


@router.get("/metrics", include_in_schema=False)
def metrics(hub: TheHub) -> Response:
    """The hub's figures."""
    return Response(generate_latest(hub.metrics.registry), media_type=CONTENT_TYPE_LATEST)
