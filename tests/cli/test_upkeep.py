"""gc and fsck as people call them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cofuse.checkpoint import Memory
from cofuse.store import Store


def cofuse(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-m", "cofuse", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A store with a version on main, and one that no branch has any more."""
    store = Store.init(tmp_path)
    store.commit(Memory({"w": torch.ones(30)}), message="kept")
    store.commit(Memory({"w": torch.zeros(30)}), message="lost", branch="side")
    store.update_ref("refs/heads/side", None)
    return tmp_path


def test_gc_says_what_would_go_and_removes_it_when_told_to(home: Path) -> None:
    there = len(list(Store.open(home).objects))
    kept = json.loads(cofuse("gc", "--json", cwd=home).stdout)
    assert (kept["removed"], kept["kept"]) == (0, there)
    said = json.loads(cofuse("gc", "--prune", "now", "--dry-run", "--json", cwd=home).stdout)
    assert said["removed"] == 3
    assert len(list(Store.open(home).objects)) == there
    ended = cofuse("gc", "--prune", "NOW", cwd=home)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == f"3 objects, {said['freed']:,} bytes removed; {there - 3} objects kept\n"
    assert len(list(Store.open(home).objects)) == there - 3


@pytest.mark.parametrize("days", ["soon", "-1", "nan"])
def test_gc_refuses_what_is_no_number_of_days(home: Path, days: str) -> None:
    ended = cofuse("gc", f"--prune={days}", cwd=home)
    assert ended.returncode == 1
    assert ended.stderr.startswith("cofuse: not a number of days\n")


@pytest.mark.parametrize("way", ["--from", "--mend"])
def test_fsck_names_what_damage_touches_and_mends_it(home: Path, tmp_path: Path, way: str) -> None:
    store = Store.open(home)
    good = tmp_path / "good.cofuse"
    shutil.copytree(store.path, good)
    victim = store.checkpoint("main").tensor_ids()["w"]
    store.objects.path(victim).chmod(0o644)
    os.truncate(store.objects.path(victim), 50)
    ended = cofuse("fsck", cwd=home)
    assert ended.returncode == 1
    assert ended.stdout.splitlines()[1:3] == [
        f"  in {store.resolve('main')[:12]} kept (main)",
        "  as model.safetensors: w",
    ]
    damaged = json.loads(cofuse("fsck", "--json", cwd=home).stdout)
    assert not damaged["ok"]
    assert [d["id"] for d in damaged["damaged"]] == [victim]
    if way == "--mend":
        assert cofuse("remote", "add", "good", str(good), cwd=home).returncode == 0
    ended = cofuse("fsck", way, "good" if way == "--mend" else str(good), "--json", cwd=home)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["ok"]
    assert f"{victim[:12]} mended" in ended.stderr
    assert cofuse("fsck", cwd=home).returncode == 0
