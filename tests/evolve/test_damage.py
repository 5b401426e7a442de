"""Weights on their way are not fsynced: what a power cut takes from them is found, and made again."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cofuse.checkpoint import content_id, open_local
from cofuse.evolve import read_records
from cofuse.evolve.records import by_kind
from cofuse.evolve.work import Contribute, Work

from . import tiny

FILE = "model.safetensors"


def cut(folder: Path) -> None:
    os.truncate(folder / FILE, (folder / FILE).stat().st_size - 100)


def emptied(folder: Path) -> None:
    os.truncate(folder / FILE, 0)


def zeroed(folder: Path) -> None:
    """A page that never reached the disk, in a file of the right length."""
    size = (folder / FILE).stat().st_size
    with open(folder / FILE, "r+b") as file:
        file.seek(size - 4096)
        file.write(bytes(4096))


def headless(folder: Path) -> None:
    with open(folder / FILE, "r+b") as file:
        file.write(bytes(4096))


def flipped(folder: Path) -> None:
    data = bytearray((folder / FILE).read_bytes())
    data[-3] ^= 1
    (folder / FILE).write_bytes(data)


def gone(folder: Path) -> None:
    (folder / FILE).unlink()


def unnamed(folder: Path) -> None:
    (folder / FILE).unlink()
    (folder / "config.json").unlink()
    folder.rmdir()


DAMAGE: tuple[Callable[[Path], None], ...] = (cut, emptied, zeroed, headless, flipped, gone, unnamed)


class Struck(Exception):
    """A worker that goes away."""


class StruckAtLast(tiny.Here):
    """The last of a round's three contributors is never heard of."""

    def do(self, work: Work) -> dict[str, Any]:
        if isinstance(work, Contribute) and work.folder.name == "prime-2":
            raise Struck
        return super().do(work)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that ended before its first round did: study.yaml, and the folder `run`."""
    with pytest.raises(Struck):
        tiny.go(tiny.write(tmp_path / "study.yaml", **tiny.ROUNDS), tmp_path / "run", workers=StruckAtLast)
    return tmp_path


def made_again(run: Path) -> list[str]:
    """Who of the first round trained when the run went on."""
    done = tiny.go(run / "study.yaml", run / "run").done
    first, _ = by_kind(read_records(run / "run" / "records.jsonl"), "round")
    assert first.refused == ()
    return sorted(work.folder.name for work in done if work.folder.parent.name == "round-1")


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_contribution_is_made_again(whole: Path, run: Path, damage: Callable[[Path], None]) -> None:
    damage(run / "run" / "contributions" / "seed-0" / "round-1" / "even-0")
    assert made_again(run) == ["even-0", "prime-2"]
    assert tiny.trees(run / "run")["seed-0"] == tiny.trees(whole / "run")["seed-0"]


def test_a_whole_contribution_is_not_made_again(whole: Path, run: Path) -> None:
    assert made_again(run) == ["prime-2"]
    assert tiny.trees(run / "run")["seed-0"] == tiny.trees(whole / "run")["seed-0"]


def test_a_contribution_whose_record_does_not_say_its_content_is_made_again(whole: Path, run: Path) -> None:
    path = run / "run" / "records.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert all(record.pop("content") for record in records if record["kind"] == "contribution")
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert made_again(run) == ["even-0", "least-1", "prime-2"]
    assert tiny.trees(run / "run")["seed-0"] == tiny.trees(whole / "run")["seed-0"]


class Syncing(tiny.Here):
    """Workers that count the files a contribution has fsynced."""

    def __init__(self, count: int, threads: int) -> None:
        super().__init__(count, threads)
        self.synced: list[str] = []

    def do(self, work: Work) -> dict[str, Any]:
        real = os.fsync

        def fsync(fd: int) -> None:
            self.synced.append(os.readlink(f"/proc/self/fd/{fd}"))
            real(fd)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fsync", fsync)
            return super().do(work)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="no /proc to tell the files by")
def test_a_record_has_the_content_of_what_was_written_and_no_weights_are_synced(tmp_path: Path) -> None:
    study = tiny.write(tmp_path / "study.yaml", **tiny.ROUNDS, rounds=1, keep_contributions=True)
    workers = tiny.go(study, tmp_path / "run", workers=Syncing)
    records = by_kind(read_records(tmp_path / "run" / "records.jsonl"), "contribution")
    assert len(records) == 4
    for record in records:
        assert record.content == content_id(open_local(tmp_path / "run" / record.folder))
    assert sum(isinstance(work, Contribute) for work in workers.done) == 3
    # The journal and the store, which other threads may write meanwhile, go on syncing theirs.
    assert not [path for path in workers.synced if path.endswith((".safetensors", ".json"))]
