"""Stores and folders that the tests of this room share."""

from pathlib import Path

import pytest
from odd_folders import KINDS, single

from cofuse.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.init(tmp_path / "home")


@pytest.fixture(params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    made = tmp_path / "model"
    made.mkdir()
    KINDS[request.param](made)
    return made


@pytest.fixture
def model(tmp_path: Path) -> Path:
    made = tmp_path / "model"
    made.mkdir()
    single(made)
    return made
