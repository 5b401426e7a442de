"""The application: the hub's routes, put together from one table."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from fastapi import APIRouter, FastAPI

from .. import __version__
from .answers import install
from .api import accounts, contributions, health, jobs, repositories, rounds, store, uploads
from .api.described import Described
from .direct import Direct
from .gateway import Gateway
from .hub import Hub
from .huggingface.routers import ROUTERS
from .logs import set_up
from .settings import Settings
from .web import router as pages

PREFIX = "/api/v1"
# Routers of the hub's own API, and those with paths of their own; a new noun is one file and one row.
API: tuple[APIRouter, ...] = (
    contributions.router,  # first, because they are read most, and routes are tried in turn
    repositories.router,
    accounts.router,
    store.router,
    uploads.router,
    rounds.router,
    jobs.router,
)
OTHERS: tuple[APIRouter, ...] = (health.router, *ROUTERS, pages.router)  # last: its paths begin with anything


def make_app(hub: Hub) -> FastAPI:
    """The application of a hub."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        hub.close()

    app = Described(
        title="Cofuse hub",
        version=__version__,
        description="A community evolves a model together.",
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
        openapi_url="/openapi.json",
        lifespan=lifespan,
        # The hub has figures of its own, and looking for somebody who wants these costs each request.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.state.hub = hub
    install(app)
    app.add_middleware(Direct, hub=hub, prefix=PREFIX)
    app.add_middleware(Gateway, hub=hub)  # the last is the outermost
    for router in API:
        app.include_router(router, prefix=PREFIX)
    for router in OTHERS:
        app.include_router(router)
    return app


def from_settings(settings: Settings) -> FastAPI:
    """The application of a hub that is opened for it: what each process that answers requests starts with."""
    set_up(settings.logs)
    return make_app(Hub(settings))
