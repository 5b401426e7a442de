"""Runs that the tests of this room share."""

from __future__ import annotations

from pathlib import Path

import pytest

from cofuse.store import Store

from . import tiny


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the tiny study, with the study beside it as study.yaml; to be copied, not changed."""
    folder = tmp_path_factory.mktemp("whole")
    tiny.go(tiny.write(folder / "study.yaml"), folder / "run")
    return folder


@pytest.fixture(scope="session")
def base(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base as a folder."""
    folder = tmp_path_factory.mktemp("base") / "model"
    return Store.open(whole / "run").checkout("base", folder)
