"""A repository for each test, on a hub that a file's tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ..serving import HubServer
from .bench import Bench


@pytest.fixture
def bench(hub_server: HubServer, tmp_path: Path) -> Iterator[Bench]:
    """A repository of its own."""
    made = Bench.make(hub_server, tmp_path)
    yield made
    for client in made.clients.values():
        client.close()
