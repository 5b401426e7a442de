"""Killed, interrupted, out of disk: what was there stays whole, and the same command finishes with the same ids."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cofuse.errors import CofuseError
from cofuse.evolve import read_records
from cofuse.store import Store

from . import tiny

SCRIPT = """
import sys
from pathlib import Path
from cofuse.evolve.run import evolve
from cofuse.evolve.study import read_study
evolve(read_study(Path(sys.argv[1])), Path(sys.argv[2]), None, workers=1)
"""


def begin(*command: str) -> subprocess.Popen[str]:
    # A shell starts background jobs with Ctrl-C ignored; when the tests are one, what they start would ignore it too.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(
            [sys.executable, *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    finally:
        signal.signal(signal.SIGINT, before)


def command(study: Path, folder: Path) -> tuple[str, ...]:
    return "-m", "cofuse", "evolve", str(study), "--out", str(folder), "--workers", "1"


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def children(process: int) -> list[int]:
    found = []
    for task in sorted(Path(f"/proc/{process}/task").iterdir(), key=lambda t: t.name != str(process)):
        with contextlib.suppress(FileNotFoundError):  # a thread that has ended meanwhile
            found += [int(p) for p in (task / "children").read_text().split()]
    return found


def until(ready: object, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not ready():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.01)


def records(folder: Path) -> int:
    path = folder / "records.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_kills_change_nothing(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    moments = random.Random(20221201)
    # While the workers still import; then anywhere.
    for after in (-1, moments.randrange(4, 20), moments.randrange(20, 40)):
        process = begin("-c", SCRIPT, str(whole / "study.yaml"), str(folder))
        until(lambda process=process: len(children(process.pid)) >= 2)  # a worker, and Python's own
        started = children(process.pid)
        if after >= 0:
            until(lambda process=process, after=after: records(folder) > after or process.poll() is not None)
            time.sleep(moments.uniform(0, 0.2))
        process.send_signal(signal.SIGKILL)
        until(lambda started=started: not any(map(alive, started)), seconds=10.0)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        kept = tiny.outcome(folder) if records(folder) > 3 else None
        if kept is not None:
            assert kept[2] <= tiny.outcome(whole / "run")[2]
            assert Store.open(folder).fsck().ok
    assert 0 < records(folder) < records(whole / "run")
    tiny.go(whole / "study.yaml", folder)
    assert tiny.outcome(folder) == tiny.outcome(whole / "run")
    assert not (folder / "contributions").exists()


@pytest.mark.parametrize("how", ["Ctrl-C while the workers start", "SIGTERM to all of them"])
def test_an_interrupted_run_says_so_and_goes_on(whole: Path, tmp_path: Path, how: str) -> None:
    folder = tmp_path / "run"
    process = begin(*command(whole / "study.yaml", folder))
    until(lambda: len(children(process.pid)) >= 2)
    started = children(process.pid)
    if how.startswith("Ctrl-C"):
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the whole group
    else:
        until(lambda: records(folder) > 5)
        os.killpg(process.pid, signal.SIGTERM)  # as `timeout` does
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (130, "")
    assert err.splitlines() == [
        "cofuse: interrupted",
        "  to do:    the same command goes on where it was, or starts anew",
    ]
    until(lambda: not any(map(alive, started)), seconds=10.0)
    tiny.go(whole / "study.yaml", folder)
    assert tiny.outcome(folder) == tiny.outcome(whole / "run")


def test_a_worker_that_dies_is_told(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = begin(*command(whole / "study.yaml", folder))
    until(lambda: records(folder) > 1)
    newest = max(children(process.pid))
    os.kill(newest, signal.SIGKILL)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert err.startswith("cofuse: a worker process died\n")
    assert "--workers 1" in err
    assert "Traceback" not in err


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A disk of a megabyte."""
    if os.geteuid() != 0 or sys.platform != "linux":
        pytest.skip("only root can mount a small disk")
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], check=False).returncode:
        pytest.skip("mounting is not allowed here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path, leave: int) -> None:
    """Leave so many bytes on a disk."""
    disk = os.statvfs(folder)
    (folder / "ballast").write_bytes(bytes(max(0, disk.f_bavail * disk.f_frsize - leave)))


def test_a_full_disk_is_told_and_nothing_is_lost(whole: Path, small: Path) -> None:
    done = 0
    for pages in (0, 1, 2, 4, 7, 12, 20, 35, 60):
        fill(small, pages * 4096)
        with pytest.raises(CofuseError, match="cannot write") as full:
            tiny.go(whole / "study.yaml", small / "run")
        assert full.value.got == "No space left on device"
        assert full.value.hint == "free some space and run the same command again"
        (small / "ballast").unlink()
        assert records(small / "run") >= done  # goes on where it was
        done = records(small / "run")
    assert done > 5
    assert {r.id for r in read_records(small / "run" / "records.jsonl")} <= tiny.outcome(whole / "run")[2]
    assert Store.open(small / "run").fsck().ok
    tiny.go(whole / "study.yaml", small / "run")
    assert tiny.outcome(small / "run") == tiny.outcome(whole / "run")


def test_the_command_on_a_full_disk(whole: Path, small: Path) -> None:
    fill(small, 0)
    process = begin(*command(whole / "study.yaml", small / "run"))
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.startswith("cofuse: cannot write")
    assert "free some space" in err
    assert "Traceback" not in err
    (small / "ballast").unlink()
    tiny.go(whole / "study.yaml", small / "run")
    assert tiny.outcome(small / "run") == tiny.outcome(whole / "run")
