"""Remotes that the tests of this folder share: a folder, a bucket on a real server, a repository on a real hub."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub.serving import HubServer, serving, tell
from hub.swift import Swift
from remote_places import Place, bucket, on_hub

from cofuse.credentials import Credentials

_numbers = itertools.count()


@pytest.fixture
def a_bucket(swift: Swift) -> Place:
    return bucket(swift, f"bucket{next(_numbers)}", "some/models")


@pytest.fixture
def a_folder(tmp_path: Path) -> Place:
    (tmp_path / "disk").mkdir()
    return Place(str(tmp_path / "disk"))


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    with serving(tmp_path_factory.mktemp("hub") / "data", {"limits.requests": 1_000_000}) as server:
        yield server


@pytest.fixture
def a_hub(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    # A home of its own, for the processes that tests start too.
    monkeypatch.setenv("HOME", str(tmp_path / "own"))
    monkeypatch.setattr("cofuse.credentials._Current.machine", None)  # a command run in this process may have told it
    Credentials(tmp_path / "own" / ".config" / "cofuse" / "credentials").set(hub.url, hub.token("ann", "maintain"))
    return on_hub(hub, f"model{next(_numbers)}")


@pytest.fixture(params=["folder", "bucket", "hub"])
def place(request: pytest.FixtureRequest) -> Place:
    found: Place = request.getfixturevalue(f"a_{request.param}")
    return found


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Any:
    """A failed test shows what the hub has said."""
    return tell((yield))
