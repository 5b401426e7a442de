"""Listening: processes that answer requests, processes that work, and an orderly end."""

from __future__ import annotations

import functools
import socket
from typing import Any

from granian import Granian
from granian.constants import Interfaces, Loops

from ..errors import HubError
from .app import from_settings
from .database import Database
from .quotas import recount
from .settings import Settings
from .storage import begin
from .work.staff import staff


def serve(settings: Settings, *, ready: Any = lambda url: None) -> None:
    """Answer requests until told to stop (SIGINT or SIGTERM): what is running is finished first, for `drain` seconds.

    Args:
        settings: see `Settings`.
        ready: called with the hub's URL when its port is its own and its tables are made.

    Raises:
        HubError: the port is taken, or the database cannot be used.
        StoreError: the bucket cannot be used.
    """
    begin(settings)  # first: nothing is made where it fails
    settings.data.mkdir(parents=True, exist_ok=True)
    database = Database(settings.database_url)
    database.migrate()  # here, so that of several processes only one does it
    recount(database, settings.data.absolute() / "repositories")
    database.close()
    where = settings.server
    port = _free_port(where.host, where.port)
    url = where.url or f"{'https' if where.certificate else 'http'}://{where.host}:{port}"
    settings = settings.model_copy(update={"server": where.model_copy(update={"port": port, "url": url})})
    ready(url)
    server = Granian(
        "cofuse",
        address=where.host,
        port=port,
        interface=Interfaces.ASGI,
        workers=where.processes,
        loop=Loops.uvloop,
        websockets=False,
        log_enabled=False,
        ssl_cert=where.certificate,
        ssl_key=where.key,
        respawn_failed_workers=True,
        workers_kill_timeout=where.drain,
    )
    with staff(settings):
        server.serve(target_loader=functools.partial(_load, settings), wrap_loader=False)


def _load(settings: Settings, *_: Any) -> Any:
    return from_settings(settings)


def _free_port(host: str, port: int) -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise HubError("cannot listen", where=f"{host}:{port}", got=error.strerror) from None
        found: int = probe.getsockname()[1]
        return found
