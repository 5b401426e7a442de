"""Remembered ids are the ids: of files that are the same, and of no others."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from cofuse.checkpoint import Hashed, Memory, SafetensorsFile, content_id, open_local, remembered
from cofuse.checkpoint.remembered import Remembered

OLD = time.time() - 3600


@pytest.fixture(autouse=True)
def _old_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    # The time of the last change of an inode cannot be set: let the clock run ahead.
    now = time.time_ns
    monkeypatch.setattr(remembered.time, "time_ns", lambda: now() + 3600 * 10**9)


def model(folder: Path, value: float = 1.0, shard: int | None = None) -> Path:
    Memory({"x": torch.full((50,), value), "y": torch.arange(9.0)}).save(folder, max_shard_bytes=shard)
    return folder


class Closed(SafetensorsFile):
    """Nothing may be read of it."""

    def read_bytes(self, name: str, start: int = 0, stop: int | None = None) -> bytearray:
        raise AssertionError("read again")


def hash_and_keep(cache: Path, folder: Path) -> str:
    memory = Remembered(cache)
    hashed = memory.watch(open_local(folder))
    for name in hashed.names():
        hashed.read_bytes(name)
    found = content_id(hashed)
    memory.keep()
    return found


def remembered_ids(cache: Path, folder: Path) -> Mapping[str, str]:
    return Remembered(cache).watch(open_local(folder))._ids


@pytest.mark.parametrize("shard", [None, 40])
def test_what_was_hashed_is_known(shard: int | None, tmp_path: Path) -> None:
    folder = model(tmp_path / "m", shard=shard)
    assert hash_and_keep(tmp_path / "cache", folder) == content_id(open_local(folder))
    assert remembered_ids(tmp_path / "cache", folder) == Hashed(open_local(folder)).tensor_ids()


def test_what_is_known_is_not_read(tmp_path: Path) -> None:
    folder = model(tmp_path / "m")
    expected = hash_and_keep(tmp_path / "cache", folder)
    assert content_id(Remembered(tmp_path / "cache").watch(Closed(folder / "model.safetensors"))) == expected


def test_only_what_was_read_is_kept_and_adds_up(tmp_path: Path) -> None:
    folder = model(tmp_path / "m")
    for name in ("x", "y"):
        memory = Remembered(tmp_path / "cache")
        memory.watch(open_local(folder)).read_bytes(name)
        memory.keep()
    assert set(remembered_ids(tmp_path / "cache", folder)) == {"x", "y"}


def test_changed_in_place_with_its_time_set_back(tmp_path: Path) -> None:
    folder = model(tmp_path / "m")
    file = folder / "model.safetensors"
    hash_and_keep(tmp_path / "cache", folder)
    stat = file.stat()
    with file.open("r+b") as opened:
        opened.seek(-4, os.SEEK_END)
        opened.write(b"\1\2\3\4")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert remembered_ids(tmp_path / "cache", folder) == {}


def test_replaced_by_another(tmp_path: Path) -> None:
    hash_and_keep(tmp_path / "cache", model(tmp_path / "m"))
    assert remembered_ids(tmp_path / "cache", model(tmp_path / "m", 2.0)) == {}


def test_changed_while_it_was_read(tmp_path: Path) -> None:
    folder = model(tmp_path / "m")
    memory = Remembered(tmp_path / "cache")
    memory.watch(open_local(folder)).read_bytes("x")
    os.utime(folder / "model.safetensors", (OLD, OLD))
    memory.keep()
    assert not (tmp_path / "cache").exists()


def test_just_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    hash_and_keep(tmp_path / "cache", model(tmp_path / "m"))
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("damage", [b"", b"[]", b"{}", b"[" * 100_000, b'{"stamp": 1, "ids": {"x": 3}}'])
def test_a_damaged_memory_is_none(damage: bytes, tmp_path: Path) -> None:
    folder = model(tmp_path / "m")
    expected = hash_and_keep(tmp_path / "cache", folder)
    (kept,) = (tmp_path / "cache").iterdir()
    kept.write_bytes(damage)
    assert remembered_ids(tmp_path / "cache", folder) == {}
    assert hash_and_keep(tmp_path / "cache", folder) == expected
    assert set(remembered_ids(tmp_path / "cache", folder)) == {"x", "y"}


def test_where_nothing_can_be_written_it_is_hashed(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    folder = model(tmp_path / "m")
    assert hash_and_keep(tmp_path / "cache", folder) == content_id(open_local(folder))


def test_what_is_no_file_is_only_watched(tmp_path: Path) -> None:
    memory = Remembered(tmp_path / "cache")
    hashed = memory.watch(Memory({"x": torch.ones(2)}))
    hashed.read_bytes("x")
    memory.keep()
    assert not (tmp_path / "cache").exists()
