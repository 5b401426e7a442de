"""Hubs that the tests of this room share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from cofuse.hub.hub import Hub
from cofuse.hub.settings import Settings

from .serving import HubServer, serving, tell


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """A hub without a server."""
    made = Hub(Settings(data=tmp_path / "hub"))
    made.database.migrate()
    yield made
    made.close()


@pytest.fixture(scope="module")
def hub_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    """A hub for the tests of a file, which make accounts and repositories of names of their own; not to be killed."""
    with serving(tmp_path_factory.mktemp("hub") / "data", {"limits.requests": 1_000_000}) as server:
        yield server


@pytest.fixture
def start_hub(tmp_path: Path) -> Iterator[Callable[..., HubServer]]:
    """Starts hubs of a test's own: `start_hub({"limits.file": 10}, workers=1)`; they may be killed."""
    numbers = count()
    with ExitStack() as stack:

        def start(settings: dict[str, object] | None = None, data: Path | None = None, **more: Any) -> HubServer:
            return stack.enter_context(serving(data or tmp_path / f"hub{next(numbers)}", settings, **more))

        yield start


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Any:
    """A failed test shows what its hubs have said."""
    return tell((yield))
