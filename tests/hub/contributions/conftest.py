"""A repository for each test, on a hub that a file's tests share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from ..serving import HubServer
from .bench import Bench


@pytest.fixture
def bench(hub_server: HubServer, tmp_path: Path) -> Iterator[Bench]:
    """A repository of its own."""
    with closing(Bench.make(hub_server, tmp_path)) as made:
        yield made
