"""A folder beside a version, beside what a commit of it would be; and checking out in its place."""

import os
import shutil
import time
from pathlib import Path

import pytest
from histories import model
from odd_folders import digests, write_weights

from cofuse.checkpoint import TensorSpec
from cofuse.checkpoint.remembered import Remembered
from cofuse.errors import StoreError
from cofuse.store import Store
from cofuse.store.status import Status, compare, scan
from cofuse.store.trees import load_tree


def status(store: Store, folder: Path, memory: Remembered | None = None) -> Status:
    return compare(store.objects, load_tree(store.objects, store.load_commit("HEAD").tree), scan(folder, memory))


def age(folder: Path) -> None:
    """As if nothing had been written for a while."""
    for path in folder.rglob("*"):
        if path.is_file():
            os.utime(path, (1, 1))


def test_a_scan_is_the_tree_that_a_commit_has(store: Store, folder: Path) -> None:
    found = scan(folder).tree
    assert found.id == store.add(folder)
    assert scan(folder, threads=1).tree == found
    store.commit(folder, message="one")
    assert status(store, folder) == Status({}, {})


def test_what_changed_is_told(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    model({"a": 1, "b": 2, "gone": 3}).save(folder)
    (folder / "old.txt").write_text("old")
    write_weights(folder / "extra.bin.safetensors", {"x": TensorSpec("F32", (4,))}, {})
    store.commit(folder, message="one")
    model({"a": 1, "b": 5, "new": 3}).save(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "model.safetensors", folder)
    write_weights(folder / "extra.bin.safetensors", {"x": TensorSpec("F32", (4,))}, {}, "else")
    (folder / "old.txt").unlink()
    (folder / "new.txt").write_text("new")
    told = status(store, folder)
    assert told.files == {
        "extra.bin.safetensors": "changed",
        "model.safetensors": "changed",
        "new.txt": "added",
        "old.txt": "removed",
    }
    assert told.tensors == {"b": "changed", "gone": "removed", "new": "added", "extra.bin.safetensors: x": "changed"}


def test_what_was_hashed_before_is_not_read_again(store: Store, model: Path, tmp_path: Path) -> None:
    (model / "pytorch_model.bin").write_bytes(os.urandom(3_000_000))
    store.commit(model, message="one")
    age(model)
    time.sleep(2.1)  # a change of the status has a grain too
    first = Remembered(tmp_path / "ids")
    scan(model, first)
    first.keep()
    weights = model / "model.safetensors"
    again = Remembered(tmp_path / "ids")
    before = scan(model)
    assert scan(model, again).tree == before.tree
    assert len(list((tmp_path / "ids").iterdir())) == 2
    # What is remembered is believed, and not found out again:
    remembered = {path: path.read_text() for path in (tmp_path / "ids").iterdir()}
    for path, text in remembered.items():
        path.write_text(text.replace(before.tensors["f32"], "0" * 64))
    assert scan(model, Remembered(tmp_path / "ids")).tensors["f32"] == "0" * 64
    weights.write_bytes(weights.read_bytes())  # the same bytes, but written anew
    assert scan(model, Remembered(tmp_path / "ids")).tree == before.tree


def test_an_unchanged_version_is_replaced_in_place(store: Store, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for k in range(2):
        model({"a": k}, {"config.json": b"{}", "vocab.txt": b"same"}).save(tmp_path / str(k))
        store.commit(tmp_path / str(k), message=str(k))
    store.checkout("main~1", out)
    kept, changed = (os.stat(out / name).st_ino for name in ("vocab.txt", "model.safetensors"))
    store.checkout("main", out)
    assert digests(out) == digests(tmp_path / "1")
    assert os.stat(out / "vocab.txt").st_ino == kept
    assert os.stat(out / "model.safetensors").st_ino != changed
    assert os.stat(out / "vocab.txt").st_nlink == 1
    store.checkout("main", out)
    assert digests(out) == digests(tmp_path / "1")


@pytest.mark.parametrize("what", ["another file", "a change", "a git folder", "a damaged file"])
def test_whatever_would_be_lost_is_refused(store: Store, tmp_path: Path, what: str) -> None:
    out = tmp_path / "out"
    model({"a": 1}).save(tmp_path / "m")
    store.commit(tmp_path / "m", message="one")
    store.checkout("main", out)
    if what == "another file":
        (out / "notes.txt").write_text("mine")
    elif what == "a change":
        (out / "config.json").write_text("{}")
    elif what == "a git folder":
        (out / ".git").mkdir()
        (out / ".git" / "config").write_text("x")
    else:
        (out / "model.safetensors").write_bytes(b"x")
    before = digests(out)
    with pytest.raises(StoreError, match="not empty"):
        store.checkout("main", out)
    assert digests(out) == before
    store.checkout("main", out, replace=True)
    assert digests(out) == digests(tmp_path / "m")


def test_links_into_a_cache_are_not_linked_again(store: Store, tmp_path: Path) -> None:
    out = tmp_path / "out"
    model({"a": 1}, {"config.json": b"{}"}).save(tmp_path / "m")
    store.commit(tmp_path / "m", message="one")
    store.checkout("main", out)
    blob = tmp_path / "blob"
    os.rename(out / "model.safetensors", blob)
    (out / "model.safetensors").symlink_to(blob)
    store.checkout("main", out)
    assert not (out / "model.safetensors").is_symlink()
    assert os.stat(out / "model.safetensors").st_ino != os.stat(blob).st_ino
    assert digests(out) == digests(tmp_path / "m")
