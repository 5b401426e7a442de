"""Remotes that the tests of this folder share: a folder, and a bucket on a real server."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from remote_places import Place, Swift, bucket

_numbers = itertools.count()


@pytest.fixture(scope="session")
def swift(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swift]:
    server = Swift(tmp_path_factory.mktemp("swift"))
    yield server
    server.stop()


@pytest.fixture
def a_bucket(swift: Swift) -> Place:
    return bucket(swift, f"bucket{next(_numbers)}", "some/models")


@pytest.fixture
def a_folder(tmp_path: Path) -> Place:
    (tmp_path / "disk").mkdir()
    return Place(str(tmp_path / "disk"))


@pytest.fixture(params=["folder", "bucket"])
def place(request: pytest.FixtureRequest) -> Place:
    found: Place = request.getfixturevalue(f"a_{request.param}")
    return found
