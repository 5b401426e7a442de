"""Real git repositories in temporary folders, with our filter in them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from git_repositories import Git


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with our filter in it, to be copied: it takes a second to make."""
    git = Git(tmp_path_factory.mktemp("installed"), tmp_path_factory.mktemp("home"))
    git("init", "-q", "-b", "main")
    git.cofuse("install")
    return git.top


@pytest.fixture
def git(installed: Path, tmp_path: Path) -> Git:
    return Git(Path(shutil.copytree(installed, tmp_path / "repository")), tmp_path)
