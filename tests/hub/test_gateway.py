"""What every request passes: figures that nobody can make many of, and log lines of the right level."""

from __future__ import annotations

import asyncio
import logging

import httpx
import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from cofuse.hub.app import make_app
from cofuse.hub.gateway import Gateway
from cofuse.hub.hub import Hub
from cofuse.hub.logs import LOG
from cofuse.hub.metrics import METHODS


def ask(app: ASGIApp, *wanted: tuple[str, str]) -> list[int]:
    async def all_of_them() -> list[int]:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://hub") as client:
            return [(await client.request(method, path)).status_code for method, path in wanted]

    return asyncio.run(all_of_them())


def counted(hub: Hub) -> dict[tuple[str, str, str], float]:
    samples = next(iter(hub.metrics.requests.collect())).samples
    return {
        (one.labels["method"], one.labels["route"], one.labels["status"]): one.value
        for one in samples
        if one.name == "cofuse_requests_total"
    }


def test_methods_that_nobody_knows_are_counted_as_one(hub: Hub) -> None:
    odd = [f"BREW{k}" for k in range(50)] + ["TRACE", "CONNECT"]
    ask(make_app(hub), *((method, path) for method in odd for path in ("/healthz", "/api/v1/repositories/a/b")))
    found = counted(hub)
    assert {method for method, _, _ in found} == {"other"}
    assert sum(found.values()) == 2 * len(odd)
    assert len(found) == 2


def test_every_request_is_counted_once(hub: Hub) -> None:
    wanted = [(method, path) for method in sorted(METHODS) for path in ("/healthz", "/nowhere/at/all/x", "/api/v1/me")]
    ask(make_app(hub), *wanted, *wanted)
    found = counted(hub)
    assert sum(found.values()) == 2 * len(wanted)
    assert {method for method, _, _ in found} == METHODS


def test_a_mistake_of_ours_is_logged_as_an_error(
    hub: Hub, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(LOG, "propagate", True)  # or pytest, which listens at the root, hears nothing
    ask(Gateway(broken, hub), ("GET", "/x"))
    said = [record for record in caplog.records if record.getMessage() == "request"]
    assert [(record.levelno, vars(record)["status"]) for record in said] == [(logging.ERROR, 500)]
