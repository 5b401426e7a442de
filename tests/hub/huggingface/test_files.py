"""Files on the disk: whole, verified, made once, and never more than there is room for."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from cofuse.errors import CorruptError
from cofuse.hub import files
from cofuse.hub.files import Entry, Files
from cofuse.store import Store
from cofuse.store.sha256 import known_sha256
from cofuse.store.trees import load_tree

MIB = 1024 * 1024


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.init(tmp_path / "store")


def committed(store: Store, folder: Path) -> dict[str, Entry]:
    commit = store.commit(folder, message="files", parents=[], branch=f"b{time.monotonic_ns()}")
    return dict(load_tree(store.objects, commit.tree).files)


def blob(folder: Path, name: str, size: int) -> bytes:
    folder.mkdir(exist_ok=True)
    data = hashlib.shake_128(name.encode()).digest(size)
    (folder / name).write_bytes(data)
    return data


@settings(max_examples=12)
@given(st.binary(max_size=300), st.integers(0, 3))
def test_every_byte_as_it_was(tmp_path_factory: pytest.TempPathFactory, data: bytes, tensors: int) -> None:
    here = tmp_path_factory.mktemp("files")
    store = Store.init(here / "store")
    source = here / "model"
    source.mkdir()
    (source / "plain").write_bytes(data)
    save_file({f"w{i}": torch.full((i + 1, 5), 0.5) for i in range(tensors)}, source / "model.safetensors")
    cache = Files(here / "files", 10 * MIB)
    for path, entry in committed(store, source).items():
        place, sha256 = cache.file(store, entry)
        assert place.read_bytes() == (source / path).read_bytes()
        assert sha256 == hashlib.sha256(place.read_bytes()).hexdigest() == cache.sha256(store, entry)
        assert cache.file(store, entry) == (place, sha256)


def test_many_who_ask_at_once_make_it_once(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = blob(tmp_path / "model", "a.bin", 9 * MIB)
    (entry,) = committed(store, tmp_path / "model").values()
    caches = [Files(tmp_path / "files", 100 * MIB) for _ in range(2)]  # as two processes have them
    made = []
    real = Files._make
    monkeypatch.setattr(Files, "_make", lambda self, *rest: made.append(1) or real(self, *rest))
    found: list[bytes] = []
    threads = [
        threading.Thread(target=lambda c=cache: found.append(c.file(store, entry)[0].read_bytes()))
        for cache in caches * 8
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [data] * 16
    assert len(made) == 1


def test_what_was_not_asked_for_longest_goes(store: Store, tmp_path: Path) -> None:
    sizes = {f"f{n}": MIB for n in range(10)}
    for name, size in sizes.items():
        blob(tmp_path / "model", name, size)
    entries = committed(store, tmp_path / "model")
    cache = Files(tmp_path / "files", 4 * MIB)
    old = time.time() - 10 * files.GRACE
    for n, name in enumerate(sizes):
        place, _ = cache.file(store, entries[name])
        os.utime(place, (old + n, old + n))
    assert cache.sweep(4 * MIB) <= 4 * MIB
    there = {p.name for p in (tmp_path / "files").glob("??/*")}
    wanted = [known_sha256(store.objects, entries[name]) for name in sizes]
    assert there == set(wanted[-len(there) :])
    assert 2 <= len(there) <= 4


def test_what_is_being_served_stays(store: Store, tmp_path: Path) -> None:
    blob(tmp_path / "model", "a", MIB)
    (entry,) = committed(store, tmp_path / "model").values()
    cache = Files(tmp_path / "files", MIB)
    place, _ = cache.file(store, entry)
    cache.sweep(0)
    assert place.exists()


def test_a_file_that_was_cut_is_made_again(store: Store, tmp_path: Path) -> None:
    data = blob(tmp_path / "model", "a", MIB)
    (entry,) = committed(store, tmp_path / "model").values()
    cache = Files(tmp_path / "files", 10 * MIB)
    place, _ = cache.file(store, entry)
    os.truncate(place, 10)
    assert cache.file(store, entry)[0].read_bytes() == data


def test_damage_is_never_handed_out(store: Store, tmp_path: Path) -> None:
    blob(tmp_path / "model", "a", MIB)
    (entry,) = committed(store, tmp_path / "model").values()
    path = store.objects.path(getattr(entry, "id"))  # noqa: B009 - a plain file's
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(raw)
    cache = Files(tmp_path / "files", 10 * MIB)
    with pytest.raises(CorruptError):
        cache.file(store, entry)
    assert not list((tmp_path / "files").glob("??/*"))
    assert not list((tmp_path / "files").glob("partial-*"))


def test_what_a_kill_left_goes(store: Store, tmp_path: Path) -> None:
    cache = Files(tmp_path / "files", 10 * MIB)
    left = tmp_path / "files" / "partial-0123456789abcdef"
    left.write_bytes(b"half")
    cache.sweep(10 * MIB)
    assert not left.exists()


def test_a_version_can_be_made_ready(store: Store, tmp_path: Path) -> None:
    blob(tmp_path / "model", "large", 2 * MIB)
    blob(tmp_path / "model", "small", 10)
    commit = store.commit(tmp_path / "model", message="files")
    entries = load_tree(store.objects, commit.tree).files
    Files(tmp_path / "files", 10 * MIB).warm(store, commit.id)
    give_up = time.monotonic() + 20
    while known_sha256(store.objects, entries["large"]) is None:
        assert time.monotonic() < give_up
        time.sleep(0.01)
    assert known_sha256(store.objects, entries["small"]) is None
