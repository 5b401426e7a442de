"""Databases that the tests of rounds run against."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cofuse.hub.database import Database
from cofuse.hub.hub import Hub
from cofuse.hub.settings import Settings

from ..postgres import postgres


@pytest.fixture(scope="session")
def cluster() -> Iterator[str]:
    """The URL of a real PostgreSQL."""
    with postgres() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def make_hub(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., Hub]]:
    """Opens hubs on one database and one folder, as many as are asked for."""
    url = None
    if request.param == "postgresql":
        url = request.getfixturevalue("cluster")
        _empty(url)
    opened: list[Hub] = []

    def make(**settings: object) -> Hub:
        hub = Hub(Settings.model_validate({"data": tmp_path / "data", "database": url, **settings}))
        if not opened:
            hub.database.migrate()
        opened.append(hub)
        return hub

    yield make
    for hub in opened:
        hub.close()


def _empty(url: str) -> None:
    from sqlalchemy import text

    database = Database(url)
    with database.engine.begin() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
    database.close()
