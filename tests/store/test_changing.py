"""A version made of another by changing files is the version that the changed folder would make."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from cofuse.errors import CofuseError, RefError, StoreError
from cofuse.store import Store
from cofuse.store.changing import change
from cofuse.store.objects import Objects
from cofuse.store.trees import Weights, load_tree

NAMES = st.sampled_from(["a.txt", "b.txt", "c/d.json", "model.safetensors", "other.safetensors", "config.json"])


def write(place: Path, name: str, seed: int) -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    if name.endswith(".safetensors"):
        save_file({f"w{i}": torch.full((3, i + 1), float(seed)) for i in range(2)}, place)
    else:
        place.write_text(f"{name} {seed}")
    return place


@settings(max_examples=20)
@given(
    st.dictionaries(NAMES, st.integers(0, 9), min_size=1),
    st.dictionaries(NAMES, st.integers(0, 9)),
    st.sets(NAMES),
)
def test_as_the_folder(
    tmp_path_factory: pytest.TempPathFactory, before: dict[str, int], put: dict[str, int], gone: set[str]
) -> None:
    here = tmp_path_factory.mktemp("changing")
    store = Store.init(here / "store")
    folder = here / "folder"
    for name, seed in before.items():
        write(folder / name, name, seed)
    first = store.commit(folder, message="first")
    places = {name: write(here / "new" / name, name, seed) for name, seed in put.items()}
    made = change(store, first.id, places, gone, message="second", ref="refs/heads/main")
    for name in gone & before.keys():
        (folder / name).unlink()
    for name, place in places.items():
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        shutil.copyfile(place, folder / name)
    folder.mkdir(exist_ok=True)
    assert made.tree == store.add(folder)
    assert store.resolve("main") == made.id
    assert made.parents == (first.id,)
    assert store.fsck().ok


def test_what_stays_is_not_read(store: Store, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = store.commit(model, message="first")
    tensors = {
        tensor
        for entry in load_tree(store.objects, first.tree).files.values()
        if isinstance(entry, Weights)
        for tensor in entry.tensors
    }
    new = tmp_path / "new.txt"
    new.write_text("new")
    for tensor in tensors:  # a read of any would fail
        path = store.objects.path(tensor)
        path.chmod(0o644)
        path.write_bytes(b"damaged")
    Objects(store.objects.places)
    made = change(store, first.id, {"new.txt": new}, message="second")
    assert set(load_tree(store.objects, made.tree).files) == {*load_tree(store.objects, first.tree).files, "new.txt"}


def test_the_branch_has_moved(store: Store, tmp_path: Path) -> None:
    new = tmp_path / "a.txt"
    new.write_text("a")
    first = change(store, None, {"a.txt": new}, message="first", ref="refs/heads/main")
    change(store, first.id, {"b.txt": new}, message="second", ref="refs/heads/main")
    with pytest.raises(RefError):
        change(store, first.id, {"c.txt": new}, message="third", ref="refs/heads/main")
    assert [c.message for c in store.log("main")] == ["second", "first"]


def test_shards_may_come_one_by_one(store: Store, tmp_path: Path) -> None:
    one, two = (tmp_path / f"model-0000{n}-of-00002.safetensors" for n in (1, 2))
    save_file({"a": torch.zeros(2)}, one)
    save_file({"b": torch.zeros(2)}, two)
    first = change(store, None, {one.name: one}, message="one", ref="refs/heads/main")
    assert first.content is None
    with pytest.raises(CofuseError, match="a shard is missing"):
        store.checkpoint("main")
    second = change(store, first.id, {two.name: two}, message="two", ref="refs/heads/main")
    assert second.content is not None
    assert set(store.checkpoint("main").names()) == {"a", "b"}


@pytest.mark.parametrize("path", ["../a", "/a", "a//b", "a\0b", "a\\b", ".git/a", ".cofuse/a"])
def test_paths_that_leave_the_folder(store: Store, tmp_path: Path, path: str) -> None:
    new = tmp_path / "a.txt"
    new.write_text("a")
    with pytest.raises(StoreError):
        change(store, None, {path: new}, message="bad", ref="refs/heads/main")
    assert store.branches() == {}
