"""Remotes as somebody types them: what works says what it did, what does not says why."""

import json
from pathlib import Path

import pytest

from cofuse.store import Store

from .test_newcomer import cofuse, done, model, refused


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with a store of one version, and an empty disk beside it."""
    folder = tmp_path / "home"
    folder.mkdir()
    (tmp_path / "disk").mkdir()
    done("init", cwd=folder)
    done("commit", model(tmp_path / "m", 1.0), "-m", "one", cwd=folder)
    return folder


def test_a_day_with_a_remote(home: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    assert done("remote", "add", "origin", "../disk", cwd=home) == f"origin is {disk}\n"
    assert done("remote", "list", cwd=home) == f"origin {disk}\n"
    tip = Store.open(home).resolve("main")
    assert done("push", cwd=home) == f"{tip[:12]} refs/heads/main (new)\n"
    assert done("push", cwd=home) == f"{tip[:12]} refs/heads/main (as it was)\n"
    assert "on refs/heads/main" in done("clone", disk, "mine", cwd=tmp_path)
    mine = tmp_path / "mine"
    done("tag", "v1", cwd=home)
    assert [m["ref"] for m in json.loads(done("push", "origin", "--tags", "--all", "--json", cwd=home))] == [
        "refs/heads/main",
        "refs/tags/v1",
    ]
    done("commit", model(tmp_path / "m", 2.0), "-m", "two", cwd=home)
    done("push", "origin", "main", cwd=home)
    second = Store.open(home).resolve("main")
    assert f"{second[:12]} refs/remotes/origin/main (was {tip[:12]})" in done("fetch", cwd=mine)
    assert Store.open(mine).resolve("main") == tip
    assert done("pull", cwd=mine) == f"main is at {second[:12]}\n"
    assert Store.open(mine).resolve("v1") == tip
    assert json.loads(done("remote", "list", "--json", cwd=mine)) == {"origin": {"address": str(disk)}}
    done("remote", "remove", "origin", cwd=mine)
    assert "no such remote" in refused("fetch", cwd=mine)
    assert "no such revision" in refused("log", "origin/main", cwd=mine)


def test_two_histories_are_merged_by_pull(home: Path, tmp_path: Path) -> None:
    done("remote", "add", "origin", "../disk", cwd=home)
    done("push", cwd=home)
    done("clone", f"file://{tmp_path / 'disk'}", "mine", cwd=tmp_path)
    mine = tmp_path / "mine"
    done("commit", model(tmp_path / "m", 2.0), "-m", "ours", cwd=mine)
    done("commit", model(tmp_path / "m", 4.0), "-m", "theirs", cwd=home)
    done("push", cwd=home)
    assert "cofuse pull" in refused("push", cwd=mine)
    assert "cofuse merge origin/main" in refused("pull", "--ff-only", cwd=mine)
    done("pull", cwd=mine)
    store = Store.open(mine)
    assert store.checkpoint("main").read("layer.bias").tolist() == [3.0] * 3
    assert store.load_commit("main").parents[1] == store.resolve("origin/main")
    done("push", cwd=mine)
    assert done("pull", cwd=home) == f"main is at {store.resolve('main')[:12]}\n"


def test_what_cannot_be_is_said(home: Path, tmp_path: Path) -> None:
    assert "add it: cofuse remote add" in refused("push", cwd=home)
    assert "no such folder" in refused("clone", "nowhere", cwd=tmp_path)
    assert "there is no store" in refused("clone", "disk", cwd=tmp_path)
    assert "no remote of this kind" in refused("remote", "add", "x", "ftp://host/x", cwd=home)
    assert "not an address on a hub" in refused("remote", "add", "x", "https://host/x", cwd=home)
    assert "not a name for a remote" in refused("remote", "add", "../x", "../disk", cwd=home)
    done("remote", "add", "origin", "../disk", cwd=home)
    assert "there is a remote of that name" in refused("remote", "add", "origin", "elsewhere", cwd=home)
    assert "no such branch or tag" in refused("push", "origin", "nothing", cwd=home)
    assert not (tmp_path / "clone").exists()


def test_keys_are_neither_kept_nor_shown(home: Path) -> None:
    secret = "do-not-print-me"
    env = {"AWS_ACCESS_KEY_ID": secret, "AWS_SECRET_ACCESS_KEY": secret, "AWS_MAX_ATTEMPTS": "1"}
    done(
        "remote",
        "add",
        "far",
        "s3://models/a",
        "--endpoint",
        "http://127.0.0.1:9",
        "--region",
        "here",
        cwd=home,
        env=env,
    )
    shown = done("remote", "list", cwd=home, env=env)
    assert shown == "far s3://models/a endpoint=http://127.0.0.1:9 region=here\n"
    ended = cofuse("remote", "add", "bad", f"s3://me:{secret}@models/a", cwd=home)
    assert ended.returncode == 1
    for file in (home / ".cofuse").rglob("*"):
        assert not file.is_file() or secret.encode() not in file.read_bytes()
    assert secret not in ended.stdout + ended.stderr


def test_a_clone_starts_on_the_branch_that_the_pusher_was_on(home: Path, tmp_path: Path) -> None:
    done("branch", "a-branch-before-main", cwd=home)
    done("remote", "add", "origin", "../disk", cwd=home)
    done("push", "origin", "--all", cwd=home)
    assert "on refs/heads/main" in done("clone", "disk", "mine", cwd=tmp_path)
