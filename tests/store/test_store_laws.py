"""What must hold of every folder and checkpoint that is committed."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from odd_folders import KINDS, ODD, count_objects, digests, noise, pickled, write_weights

from cofuse.checkpoint import Checkpoint, Memory, TensorSpec, content_id, open_local
from cofuse.errors import CheckpointError, HeaderError, RefError, StoreError
from cofuse.store import Store


def test_a_checkout_gives_back_every_byte(store: Store, folder: Path, tmp_path: Path) -> None:
    store.commit(folder, message="one")
    store.checkout("main", tmp_path / "out")
    assert digests(tmp_path / "out") == digests(folder)


def test_what_is_stored_opens_as_its_folder_does(store: Store, folder: Path) -> None:
    commit = store.commit(folder, message="one")
    if commit.content is None:
        with pytest.raises(StoreError, match="no safetensors weights"):
            store.checkpoint("main")
        return
    there, here = open_local(folder), store.checkpoint("main")
    assert here.names() == there.names()
    assert dict(here.aliases) == dict(there.aliases)
    assert dict(here.metadata) == dict(there.metadata)
    assert dict(here.files) == dict(there.files)
    assert here.config == there.config
    for name in (*there.names(), *there.aliases):
        assert here.spec(name) == there.spec(name)
        assert here.read_bytes(name) == there.read_bytes(name)
    assert commit.content == content_id(there) == content_id(here) == here.content


def test_ids_depend_on_neither_threads_nor_schedule(folder: Path, tmp_path: Path) -> None:
    made = []
    for threads in (1, 2, 7):
        store = Store.init(tmp_path / f"store{threads}")
        made.append(store.commit(folder, message="same", record={"b": 1, "a": [0.1, None]}, threads=threads).id)
    assert len(set(made)) == 1


@pytest.mark.parametrize("folder", sorted(set(KINDS) - {"pickled"}), indirect=True)
def test_a_checkpoint_and_the_folder_it_saves_are_one_tree(store: Store, folder: Path, tmp_path: Path) -> None:
    lazy = open_local(folder)
    lazy.save(tmp_path / "saved")
    first = store.commit(lazy, message="x", branch="a")
    second = store.commit(tmp_path / "saved", message="x", branch="b")
    assert first.id == second.id
    # and once more from the store itself, where nothing needs to be read
    assert store.add(store.checkpoint("a")) == first.tree


def test_tied_names_survive(store: Store, tmp_path: Path) -> None:
    w = torch.ones(2, 3)
    store.commit(Memory({"emb": w, "head": w}), message="tied")
    opened = store.checkpoint("main")
    assert opened.names() == ("emb",)
    assert dict(opened.aliases) == {"head": "emb"}
    assert torch.equal(opened.read("head"), w)
    opened.save(tmp_path / "saved")
    assert store.add(tmp_path / "saved") == opened.tree_id


def test_unchanged_tensors_are_stored_once(store: Store, model: Path) -> None:
    store.commit(model, message="one")
    before = count_objects(store)
    store.commit(model, message="two")
    assert count_objects(store) == before + 1  # the commit
    changed = {"f32": TensorSpec("F32", (40, 33))}
    write_weights(model / "more.safetensors", changed, {}, seed="new")
    store.commit(model, message="three")
    assert count_objects(store) == before + 1 + 4  # header, tensor, tree, commit


def test_a_late_change_in_a_large_tensor_keeps_what_was_before_it(store: Store, model: Path) -> None:
    store.commit(model, message="one")
    data = bytearray((model / "model.safetensors").read_bytes())
    entry = open_local(model).header.entries["large"]  # type: ignore[attr-defined]
    data[len(data) - 1] ^= 1
    at = int.from_bytes(data[:8], "little") + 8 + entry.end - 1
    data[at] ^= 1
    (model / "model.safetensors").write_bytes(data)
    store.commit(model, message="two")
    assert store.checkpoint("main").read_bytes("large") == open_local(model).read_bytes("large")
    old, new = (store.checkpoint(rev).tensor_ids()["large"] for rev in ("main~1", "main"))
    rows = [store.objects.envelope(i).rows for i in (old, new)]
    assert rows[0][0].digest == rows[1][0].digest
    assert rows[0][1].digest != rows[1][1].digest
    assert rows[1][0].stored == 0
    assert rows[1][1].stored < 40
    assert store.fsck().ok


def test_ranges_are_slices_of_the_whole(store: Store, model: Path) -> None:
    store.commit(model, message="one")
    opened = store.checkpoint("main")
    whole = bytes(open_local(model).read_bytes("large"))
    chunk = 4 * 1024 * 1024
    for start, stop in [(0, 0), (0, 1), (chunk - 3, chunk + 5), (chunk, chunk), (chunk, len(whole)), (7, len(whole))]:
        assert opened.read_bytes("large", start, stop) == whole[start:stop]
    with pytest.raises(CheckpointError, match="range outside"):
        opened.read_bytes("large", 0, len(whole) + 1)


class Fussy(Checkpoint):
    """A computed checkpoint that can only be read in blocks of its own choosing, each once."""

    def __init__(self, size: int, step: int) -> None:
        self.data = noise(size, "fussy")
        self.step = step
        self.reads = 0

    def names(self) -> tuple[str, ...]:
        return ("w",)

    def spec(self, name: str) -> TensorSpec:
        return TensorSpec("U8", (len(self.data),))

    def blocks(self, name: str, size: int = 0):  # type: ignore[no-untyped-def]
        for start in range(0, len(self.data), self.step):
            yield start, min(start + self.step, len(self.data))

    def read_bytes(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        self.reads += 1
        return self.data[start:stop]


@pytest.mark.parametrize("step", [1_000_003, 4 * 1024 * 1024, 9_000_001])
def test_a_lazy_checkpoint_is_read_once_and_in_its_own_blocks(store: Store, step: int) -> None:
    lazy = Fussy(9_000_001, step)
    store.commit(lazy, message="one")
    assert lazy.reads == -(-9_000_001 // step)
    assert store.checkpoint("main").read_bytes("w") == lazy.data


def test_tools_folders_are_left_out_and_stores_inside_too(store: Store, model: Path) -> None:
    tree = store.add(model)
    Store.init(model).commit(model, message="inside")
    (model / ".git").mkdir()
    (model / ".git" / "config").write_text("x")
    (model / ".cache" / "huggingface").mkdir(parents=True)
    (model / ".cache" / "huggingface" / "stamp").write_text("now")
    assert store.add(model) == tree


def test_links_to_files_are_followed_and_others_refused(store: Store, model: Path, tmp_path: Path) -> None:
    tree = store.add(model)
    blob = tmp_path / "blob"
    os.rename(model / "model.safetensors", blob)
    (model / "model.safetensors").symlink_to(blob)  # as the Hugging Face cache has it
    assert store.add(model) == tree
    (model / "loop").symlink_to(model)
    with pytest.raises(StoreError, match="link to a folder"):
        store.add(model)
    (model / "loop").unlink()
    (model / "broken").symlink_to(model / "nowhere")
    with pytest.raises(StoreError, match="neither file nor folder"):
        store.add(model)
    (model / "broken").unlink()
    os.mkfifo(model / "pipe")
    with pytest.raises(StoreError, match="neither file nor folder"):
        store.add(model)


def test_damaged_weights_are_refused_with_their_name(store: Store, model: Path) -> None:
    data = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(data[:-1])
    with pytest.raises(HeaderError, match="outside the file") as caught:
        store.commit(model, message="bad")
    assert "model.safetensors" in str(caught.value.where)
    assert store.branches() == {}


def test_a_missing_shard_is_refused(store: Store, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (tmp_path / "m" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(StoreError, match="a shard is missing"):
        store.add(tmp_path / "m")


@pytest.mark.parametrize("name", ["bad\nname", "back\\slash"])
def test_names_that_could_hide_something_are_refused(store: Store, model: Path, name: str) -> None:
    (model / name).write_text("x")
    with pytest.raises(StoreError, match="a path that cannot be kept"):
        store.add(model)


@pytest.mark.parametrize("record", [{"x": float("nan")}, {1: 2}, {"x": {2: 3}}, {"x": object()}, {"x": b"bytes"}])
def test_a_record_that_would_not_come_back_is_refused(store: Store, model: Path, record: dict) -> None:  # type: ignore[type-arg]
    with pytest.raises(StoreError, match="the record cannot be kept"):
        store.commit(model, message="x", record=record)


def test_the_record_comes_back_and_no_time_is_hashed(model: Path, tmp_path: Path) -> None:
    record = {"seed": 3, "lr": 5e-5, "inputs": ["a", None, True], "ünicode": {"b": 1, "a": 2}}
    a, b = Store.init(tmp_path / "a"), Store.init(tmp_path / "b")
    first = a.commit(model, message="x", author="Ada <a@b>", record=record)
    second = b.commit(model, message="x", author="Ada <a@b>", record=record)
    assert first.id == second.id
    assert first.time_ns != second.time_ns
    assert a.load_commit("main").record == record
    assert a.load_commit("main") == first


def test_a_commit_made_again_is_the_same_and_moves_nothing(store: Store, model: Path) -> None:
    first = store.commit(model, message="x", parents=[])
    again = store.commit(model, message="x", parents=[])
    assert first == again
    assert [c.id for c in store.log()] == [first.id]


def test_a_merge_has_two_parents_and_each_commit_is_logged_once(store: Store, model: Path) -> None:
    root = store.commit(model, message="root")
    store.branch("side")
    a = store.commit(model, message="a")
    b = store.commit(model, message="b", branch="side")
    both = store.commit(model, message="both", parents=["main", "side"])
    assert both.parents == (a.id, b.id)
    assert [c.message for c in store.log()] == ["both", "b", "a", "root"]
    assert [c.message for c in store.log(limit=2)] == ["both", "b"]
    assert store.resolve("main^2~1") == root.id == store.resolve("HEAD~2") == store.resolve("main^^")


def test_checkout_refuses_to_lose_anything(store: Store, model: Path, tmp_path: Path) -> None:
    store.commit(model, message="one")
    out = tmp_path / "out"
    out.mkdir()
    store.checkout("main", out)  # empty is fine
    (out / "notes").write_text("mine")
    with pytest.raises(StoreError, match="not empty"):
        store.checkout("main", out)
    assert (out / "notes").read_text() == "mine"
    store.checkout("main", out, replace=True)
    assert digests(out) == digests(model)
    for holder in (store.path, store.path.parent, tmp_path):
        with pytest.raises(StoreError, match="holds a store"):
            store.checkout("main", holder, replace=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="not a folder"):
        store.checkout("main", tmp_path / "file")
    assert store.fsck().ok


def test_an_adapter_is_kept_but_not_taken_for_a_model(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    write_weights(folder / "adapter_model.safetensors", {"x": TensorSpec("F32", (2,))}, {})
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    store.commit(folder, message="adapter")
    with pytest.raises(StoreError, match="needs its base"):
        store.checkpoint("main")
    store.checkout("main", tmp_path / "out")
    assert digests(tmp_path / "out") == digests(folder)


def test_no_weights_at_all(store: Store, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    pickled(tmp_path / "m")
    commit = store.commit(tmp_path / "m", message="x")
    assert commit.content is None
    assert store.fsck().ok


def test_finding_a_store(store: Store, tmp_path: Path) -> None:
    below = tmp_path / "home" / "a" / "b"
    below.mkdir(parents=True)
    found = Store.find(below)
    assert found is not None
    assert found.path == store.path
    assert Store.find(store.path / "objects") is not None
    assert Store.find(tmp_path) is None
    assert Store.init(tmp_path / "home").path == store.path
    bare = Store.init(tmp_path / "model.cofuse")
    assert bare.path == tmp_path / "model.cofuse"
    with pytest.raises(StoreError, match="no store here"):
        Store.open(tmp_path)
    (store.path / "format").write_text("cofuse store 2\n")
    with pytest.raises(StoreError, match="another format"):
        Store.open(tmp_path / "home")
    (tmp_path / "home2" / ".cofuse").mkdir(parents=True)
    (tmp_path / "home2" / ".cofuse" / "thesis.txt").write_text("")
    with pytest.raises(StoreError, match="holds other things"):
        Store.init(tmp_path / "home2")


def test_a_store_can_be_moved_and_copied(store: Store, model: Path, tmp_path: Path) -> None:
    commit = store.commit(model, message="one")
    shutil.copytree(store.path, tmp_path / "copy.cofuse")
    assert Store.open(tmp_path / "copy.cofuse").resolve("main") == commit.id


def test_an_empty_store_says_so(store: Store) -> None:
    with pytest.raises(RefError, match="no commit yet"):
        store.log()
    assert store.fsck().ok
    assert set(ODD) >= {"bf16", "f8", "bool", "scalar", "empty"}
