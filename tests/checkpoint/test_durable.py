"""Whole or not at all: full disks, kills, leftovers, two at once."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cofuse.checkpoint import Memory, building, durable, open_local, replace_file, save
from cofuse.errors import CheckpointError

# Two checkpoints of which a mixture would show: every number of one is its own.
MODEL = "import torch; from cofuse.checkpoint import Memory; from pathlib import Path\n" + (
    "def model(v): return Memory({f't{i}': torch.full((50_000,), float(v)) for i in range(20)},"
    " files={'config.json': b'%d' % v})\n"
)


def model(value: int) -> Memory:
    held = {f"t{i}": torch.full((50_000,), float(value)) for i in range(20)}
    return Memory(held, files={"config.json": b"%d" % value})


def value_of(folder: Path) -> float:
    """The one number that a checkpoint is full of."""
    checkpoint = open_local(folder)
    values = {checkpoint.read(name).unique().item() for name in checkpoint.names()}
    values.add(float(checkpoint.files["config.json"]))
    assert len(checkpoint.names()) == 20
    assert len(values) == 1, "a mixture"
    return values.pop()


LIMITS = [3_999_999, 1000, 1, 0]


def test_no_room_for_a_file_leaves_what_was_there(tmp_path: Path) -> None:
    """In a process that may write no file beyond a limit, for want of a disk that is full at any byte."""
    folder = tmp_path / "m"
    model(1).save(folder)
    code = MODEL + (
        "import resource\n"
        "from cofuse.errors import CheckpointError\n"
        f"for limit in {LIMITS}:\n"
        "  resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))\n"
        f"  try: model(2).save(Path({str(folder)!r}))\n"
        "  except CheckpointError as error: print(error.line)\n"
    )
    # Its output goes through a pipe, which the limit does not concern.
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        f"cannot write, in {folder}, got File too large, expected room and permission" for _ in LIMITS
    ]
    assert value_of(folder) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with room for one model and a half."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(disk)]
    try:
        done = subprocess.run(mount, check=False, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("a full disk needs a file system of its own, and there is no `mount` here")
    if done.returncode:
        pytest.skip(f"a full disk needs a file system of its own, and mounting one needs root: {done.stderr.strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_leaves_what_was_there(small_disk: Path) -> None:
    model(1).save(small_disk / "m")
    with pytest.raises(CheckpointError, match="cannot write") as caught:
        model(2).save(small_disk / "m")
    assert caught.value.got == "No space left on device"
    assert caught.value.hint == "free some space and run the same command again"
    assert value_of(small_disk / "m") == 1
    assert [p.name for p in small_disk.iterdir()] == ["m"]
    with pytest.raises(CheckpointError, match="cannot write"):
        replace_file(small_disk / "m" / "config.json", bytes(7 << 20))
    assert value_of(small_disk / "m") == 1
    assert len(list((small_disk / "m").iterdir())) == 2


def test_kill_at_any_moment_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    """One process saves again and again, alternating; it is killed while it does."""
    folder = tmp_path / "m"
    model(0).save(folder)
    code = MODEL + (
        f"models = [model(1), model(2)]; folder = Path({str(folder)!r})\n"
        "print('ready', flush=True)\n"
        "while True:\n  for m in models: m.save(folder, threads=2)\n"
    )
    r, seen = random.Random(0), set()
    for _ in range(5):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        try:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(r.uniform(0.005, 0.12))
        finally:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
        seen.add(value_of(folder))
    assert seen - {0}, "nothing was ever saved"
    model(3).save(folder)
    assert value_of(folder) == 3
    assert [p.name for p in tmp_path.iterdir()] == ["m"], "the next save sweeps what the kills left"


def test_leftovers_are_swept_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / ".m.0123abcd.partial").mkdir()
    (tmp_path / ".m.0123abcd.partial" / "model.safetensors").write_bytes(b"half")
    (tmp_path / ".ref.89abcdef.partial").write_bytes(b"half")
    mine = [".hidden", ".m.partial", "m.0123abcd.partial", ".m.XYZ.partial", ".m.0123abcd.partial.txt"]
    for name in mine:
        (tmp_path / name).write_text("mine")
    model(1).save(tmp_path / "m")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["m", *mine])


def test_what_a_living_process_builds_is_not_swept(tmp_path: Path) -> None:
    other = tmp_path / ".other.0123abcd.partial"
    other.mkdir()
    code = f"import fcntl, os, time; fd = os.open({str(other)!r}, os.O_RDONLY); fcntl.flock(fd, fcntl.LOCK_EX); print(1, flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout:
        process.stdout.readline()
        with building(tmp_path / "m") as mine:
            assert other.exists()
            save(model(2), tmp_path / "n")
            assert mine.exists(), "two builds of one process do not sweep each other"
        process.kill()
        process.wait()
    model(1).save(tmp_path / "m")
    assert not other.exists()


def test_two_saves_to_one_place_at_once_leave_one_of_them_whole(tmp_path: Path) -> None:
    models = [model(1), model(2), model(3)]
    workers = [threading.Thread(target=m.save, args=(tmp_path / "m",), kwargs={"threads": 1}) for m in models]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert value_of(tmp_path / "m") in {1, 2, 3}
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_a_system_without_exchange_gives_the_same_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    for value in (1, 2):
        model(value).save(tmp_path / "m")
        assert value_of(tmp_path / "m") == value
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_a_kill_between_two_renames_is_made_good(tmp_path: Path) -> None:
    model(1).save(tmp_path / "m")
    (tmp_path / "m").rename(tmp_path / ".m.0123abcd.old")
    durable.sweep(tmp_path)
    assert value_of(tmp_path / "m") == 1
    model(2).save(tmp_path / ".m.0123abcd.old")
    durable.sweep(tmp_path)
    assert value_of(tmp_path / "m") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_an_error_in_the_block_removes_what_was_built(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mine"), building(tmp_path / "m") as temporary:
        raise ValueError("mine" * bool((temporary / "x").write_text("half")))
    assert list(tmp_path.iterdir()) == []


def test_replacing_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "ref"
    for data in (b"one", b"", bytearray(b"two"), memoryview(b"three")):
        replace_file(path, data)
        assert path.read_bytes() == bytes(data)
    assert [p.name for p in path.parent.iterdir()] == ["ref"]
    (tmp_path / "folder").mkdir()
    with pytest.raises(CheckpointError, match="cannot write"):
        replace_file(tmp_path / "folder", b"x")
    with pytest.raises(CheckpointError, match="cannot write"):
        replace_file(path / "below", b"x")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "folder"]


def test_threads_replacing_one_file_do_not_meet(tmp_path: Path) -> None:
    failures: list[BaseException] = []

    def work(value: int) -> None:
        try:
            for _ in range(20):
                replace_file(tmp_path / "ref", b"%d" % value * 1000)
        except BaseException as error:
            failures.append(error)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures
    assert len(set((tmp_path / "ref").read_bytes())) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["ref"]


def test_a_new_file_follows_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        replace_file(tmp_path / "ref", b"x")
        model(1).save(tmp_path / "m")
    finally:
        os.umask(before)
    assert (tmp_path / "ref").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "m" / "model.safetensors").stat().st_mode & 0o777 == 0o640


def test_every_file_and_folder_is_synced_before_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order that survives a power cut: content, then the folder that lists it, then the rename, then its folder."""
    order: list[str] = []
    fsync = os.fsync

    def watch(fd: int) -> None:
        order.append(Path(os.readlink(f"/proc/self/fd/{fd}")).name.replace(".partial", ""))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", watch)
    model(1).save(tmp_path / "m")
    assert order[:2] == ["config.json", "model.safetensors"]
    assert order[2].startswith(".m.")
    assert order[3:] == [tmp_path.name]
