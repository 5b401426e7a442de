"""Settings of all tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import settings
from threadpoolctl import threadpool_limits

if TYPE_CHECKING:
    from hub.swift import Swift

# The same examples every time: a failure belongs to the change that made it. Long runs draw anew (`slow`).
settings.register_profile("cofuse", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("cofuse")


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What commands remember between runs is remembered for these tests alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """One thread for models this small: on a busy machine, threads that wait for each other take ten times as long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def swift(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swift]:
    """A real S3 server; who stops it starts it again."""
    from hub.swift import Swift  # needs a client of S3, which most tests do not

    server = Swift(tmp_path_factory.mktemp("swift"))
    yield server
    server.stop()
