"""Clones share tensors through a remote; what git names no more goes, and nothing else does."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from git_repositories import COFUSE, Git
from odd_folders import write_weights

from cofuse.checkpoint import TensorSpec
from cofuse.store import Store
from cofuse.store.git.manifest import MAX_MANIFEST
from cofuse.store.git.roots import roots

SPECS = {"a": TensorSpec("F32", (1100, 1000)), "b": TensorSpec("BF16", (70, 99))}


def weights(tmp_path: Path, seed: int) -> bytes:
    write_weights(tmp_path / "made", SPECS, {}, seed)
    return (tmp_path / "made").read_bytes()


@pytest.fixture
def shared(git: Git, tmp_path: Path) -> Git:
    """A repository with a bare one to push to, and a folder for the tensors."""
    (tmp_path / "tensors").mkdir()
    git("init", "-q", "-b", "main", "--bare", str(tmp_path / "bare.git"))
    git("remote", "add", "origin", str(tmp_path / "bare.git"))
    git("config", "cofuse.remote", str(tmp_path / "tensors"))
    git.commit("m.safetensors", weights(tmp_path, 0))
    return git


def clone(git: Git, name: str) -> Git:
    made = Git(git.home / name, git.home)
    git("clone", "-q", str(git.home / "bare.git"), str(made.top))
    return made


def test_a_clone_gets_what_was_pushed_and_no_more(shared: Git, tmp_path: Path) -> None:
    shared.commit("m.safetensors", weights(tmp_path, 1))
    shared("push", "-q", "-u", "origin", "main")
    other = clone(shared, "other")
    assert (other.top / "m.safetensors").stat().st_size <= MAX_MANIFEST
    assert "cofuse git pull" in other.cofuse("install", "--remote", str(tmp_path / "tensors"))
    other.cofuse("pull")
    assert (other.top / "m.safetensors").read_bytes() == weights(tmp_path, 1)
    assert other("status", "--porcelain") == ""
    assert len(roots(other.store.objects.places)) == 1
    other("checkout", "-q", "HEAD~1")  # the older version is fetched when it is wanted
    assert (other.top / "m.safetensors").read_bytes() == weights(tmp_path, 0)
    other("checkout", "-q", "main")
    other.commit("m.safetensors", weights(tmp_path, 2))
    other("push", "-q")
    shared("pull", "-q", "--ff-only")
    assert (shared.top / "m.safetensors").read_bytes() == weights(tmp_path, 2)
    assert Store.open(tmp_path / "tensors").fsck().ok
    assert len(Store.open(tmp_path / "tensors").branches()) == 3
    Store.open(tmp_path / "tensors").gc(grace_days=0)
    for lost in ("objects", "a part"):
        if lost == "objects":
            shutil.rmtree(other.store.path)
        else:
            largest = max((other.store.objects.path(i) for i in other.store.objects), key=lambda p: p.stat().st_size)
            largest.unlink()
        (other.top / "m.safetensors").unlink()
        other("checkout", "-q", ".")
        assert (other.top / "m.safetensors").read_bytes() == weights(tmp_path, 2)
    (other.top / "m.safetensors").unlink()
    other("checkout", "-q", ".")
    assert (other.top / "m.safetensors").read_bytes() == weights(tmp_path, 2)


def test_what_nobody_shared_is_asked_for_in_clear_words(shared: Git, tmp_path: Path) -> None:
    shared("config", "--unset", "cofuse.remote")
    done = shared.run("git", "push", "-q", "origin", "main")
    assert done.returncode == 0
    assert b"1 versions stay here alone" in done.stderr
    other = clone(shared, "other")
    other.cofuse("install")
    done = other.run(*COFUSE, "pull")
    assert done.returncode == 1
    assert b"git config cofuse.remote" in done.stderr
    other("config", "cofuse.remote", str(tmp_path / "tensors"))
    for said in (other.run(*COFUSE, "pull"), other.run("git", "cat-file", "--filters", "HEAD:m.safetensors")):
        assert said.returncode != 0
        assert b"Traceback" not in said.stderr
    shared("config", "cofuse.remote", str(tmp_path / "tensors"))
    shared.cofuse("push")
    other.cofuse("pull")
    assert (other.top / "m.safetensors").read_bytes() == weights(tmp_path, 0)
    shared("push", "-q", "origin", "main:refs/heads/second")
    shared("push", "-q", "origin", "--delete", "second")  # nothing to share


def test_a_push_that_cannot_share_does_not_push(shared: Git, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "tensors")
    assert "cofuse: " in shared.fails("push", "-q", "origin", "main")
    assert shared("ls-remote", "origin") == ""


def test_gc_removes_what_git_names_no_more(git: Git, tmp_path: Path) -> None:
    git.commit("m.safetensors", weights(tmp_path, 0))
    (git.top / "m.safetensors").write_bytes(weights(tmp_path, 1))
    git("add", "m.safetensors")  # in the index alone
    git("commit", "-qm", "second")
    git("reset", "-q", "--hard", "HEAD~1")
    before = set(git.store.objects)
    git.cofuse("gc")  # nothing is old enough
    git.cofuse("gc", "--days", "0")  # git still has the blob
    assert set(git.store.objects) == before
    git("reflog", "expire", "--expire=now", "--all")
    git("gc", "-q", "--prune=now")
    git.cofuse("gc", "--days", "0", "--dry-run")
    assert set(git.store.objects) == before
    assert "1 versions that git does not name" in git.cofuse("gc", "--days", "0")
    assert len(set(git.store.objects)) < len(before)
    (git.top / "m.safetensors").unlink()
    git("checkout", "-q", ".")
    assert (git.top / "m.safetensors").read_bytes() == weights(tmp_path, 0)


def test_status_says_what_is_where(git: Git, tmp_path: Path) -> None:
    git.commit("m.safetensors", weights(tmp_path, 0))
    said = git.cofuse("status")
    assert "1 versions" in said
    assert "m.safetensors" in said
    assert "not here" not in said
    shutil.rmtree(git.store.path)
    assert "not here: cofuse git pull" in git.cofuse("status")
