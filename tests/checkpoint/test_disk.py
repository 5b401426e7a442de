"""Finding the weights of a folder, and refusing what is damaged, missing or elsewhere."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from cofuse.checkpoint import Memory, SafetensorsFile, Shards, is_adapter, open_local, save
from cofuse.checkpoint.disk import side_files
from cofuse.errors import AdapterError, CheckpointError, HeaderError

from .models import assert_same, random_tensor

HELD = {f"t{i}": random_tensor(i, (10,)) for i in range(6)}


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """Three shards of two tensors."""
    save(Memory(HELD, files={"config.json": b'{"a": 1}'}), tmp_path / "m", max_shard_bytes=80)
    assert len(list((tmp_path / "m").glob("*.safetensors"))) == 3
    return tmp_path / "m"


def edit_index(folder: Path, **changes: Any) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_bytes())
    index["weight_map"].update(changes)
    path.write_text(json.dumps(index))


def test_shards_are_one_checkpoint(sharded: Path) -> None:
    checkpoint = open_local(sharded)
    assert_same(checkpoint, HELD)
    assert checkpoint.config == {"a": 1}
    assert list(checkpoint.files) == ["config.json"]
    assert "t0" in checkpoint
    assert "t9" not in checkpoint
    with pytest.raises(CheckpointError, match="no such tensor"):
        checkpoint.read("t9")


def test_shards_without_an_index_are_found_by_their_names(sharded: Path) -> None:
    (sharded / "model.safetensors.index.json").unlink()
    assert_same(open_local(sharded), HELD)


@pytest.mark.parametrize("index", [True, False])
def test_a_missing_shard_is_noticed(sharded: Path, index: bool) -> None:
    (sharded / "model-00002-of-00003.safetensors").unlink()
    if not index:
        (sharded / "model.safetensors.index.json").unlink()
    with pytest.raises(CheckpointError, match="a shard is missing"):
        open_local(sharded)


def test_the_last_shard_left_without_an_index_is_not_a_whole_model(sharded: Path) -> None:
    for name in (
        "model-00001-of-00003.safetensors",
        "model-00002-of-00003.safetensors",
        "model.safetensors.index.json",
    ):
        (sharded / name).unlink()
    with pytest.raises(CheckpointError, match="a shard is missing"):
        open_local(sharded)


@pytest.mark.parametrize(
    "file", ["../x.safetensors", "/etc/passwd", "sub/x.safetensors", ".", "..", "", ".hidden", "a/../model.safetensors"]
)
def test_an_index_cannot_name_a_file_elsewhere(sharded: Path, file: str) -> None:
    save_file({"t9": torch.ones(1)}, sharded.parent / "x.safetensors")
    edit_index(sharded, t9=file)
    with pytest.raises(CheckpointError, match="outside its folder") as caught:
        open_local(sharded)
    assert caught.value.where is not None
    assert caught.value.where.endswith("model.safetensors.index.json")


@pytest.mark.parametrize("file", ["model\0.safetensors", "gone.safetensors", "\x1b[31m.safetensors"])
def test_an_index_that_names_no_file_is_refused_in_plain_letters(sharded: Path, file: str) -> None:
    edit_index(sharded, t9=file)
    with pytest.raises(CheckpointError, match="a shard is missing") as caught:
        open_local(sharded)
    assert str(caught.value).isprintable() or "\n" in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_a_tensor_in_two_shards_is_refused(sharded: Path) -> None:
    save_file({"t0": torch.zeros(10), "t9": torch.ones(1)}, sharded / "extra.safetensors")
    edit_index(sharded, t9="extra.safetensors")
    with pytest.raises(CheckpointError, match="tensor in two shards") as caught:
        open_local(sharded)
    assert caught.value.got == "extra.safetensors and model-00001-of-00003.safetensors"


def test_an_index_that_names_a_tensor_which_its_shard_lacks_is_refused(sharded: Path) -> None:
    edit_index(sharded, t9="model-00001-of-00003.safetensors")
    with pytest.raises(CheckpointError, match="its shard lacks"):
        open_local(sharded)


def test_a_truncated_shard_is_refused(sharded: Path) -> None:
    shard = sharded / "model-00003-of-00003.safetensors"
    os.truncate(shard, shard.stat().st_size - 1)
    with pytest.raises(HeaderError, match="outside the file") as caught:
        open_local(sharded)
    assert caught.value.where is not None
    assert str(shard) in caught.value.where


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b"null", b"{}", b'{"weight_map": []}', b'{"weight_map": 1}', b"[" * 50_000, b"\xff"]
)
def test_a_damaged_index_is_a_typed_error(sharded: Path, raw: bytes) -> None:
    (sharded / "model.safetensors.index.json").write_bytes(raw)
    with pytest.raises(CheckpointError, match="not an index"):
        open_local(sharded)


def test_what_is_tied_in_one_shard_may_be_a_tensor_in_another(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "m1.safetensors", metadata={"b": "a", "c": "a"})
    save_file({"b": torch.zeros(2)}, tmp_path / "m2.safetensors")
    checkpoint = open_local(tmp_path)
    assert isinstance(checkpoint, Shards)
    assert dict(checkpoint.aliases) == {"c": "a"}
    assert checkpoint.read("b").tolist() == [0, 0]


def test_a_whole_file_goes_before_an_index_left_over(sharded: Path) -> None:
    save_file({"new": torch.ones(1)}, sharded / "model.safetensors")
    assert open_local(sharded).names() == ("new",)


def test_a_file_that_shrinks_while_it_is_open_is_noticed(sharded: Path) -> None:
    checkpoint = open_local(sharded)
    shard = sharded / "model-00001-of-00003.safetensors"
    os.truncate(shard, shard.stat().st_size - 1)
    assert checkpoint.read("t0").shape == (10,)
    with pytest.raises(CheckpointError, match="file ends inside a tensor"):
        checkpoint.read("t1")


def test_a_closed_file_is_a_typed_error(tmp_path: Path) -> None:
    save_file({"x": torch.ones(1)}, tmp_path / "a.safetensors")
    checkpoint = SafetensorsFile(tmp_path / "a.safetensors")
    checkpoint.close()
    checkpoint.close()
    with pytest.raises(CheckpointError, match="cannot read"):
        checkpoint.read_bytes("x")


def test_refusing_a_file_gives_its_descriptor_back(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"garbage")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with pytest.raises(HeaderError):
            open_local(tmp_path / "a.safetensors")
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        open_local(tmp_path / "gone")
    with pytest.raises(CheckpointError, match="no weights"):
        open_local(tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        open_local(tmp_path / "notes.txt")


def test_an_adapter_asks_for_its_base(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    save_file({"x": torch.ones(1)}, tmp_path / "adapter_model.safetensors")
    assert is_adapter(tmp_path)
    with pytest.raises(AdapterError, match="needs its base"):
        open_local(tmp_path)
    save_file({"x": torch.ones(1)}, tmp_path / "model.safetensors")
    assert not is_adapter(tmp_path)


def test_only_small_files_of_a_model_travel_with_it(tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.model", "vocab.txt", "chat_template.jinja", "README.md"):
        (tmp_path / name).write_text(name)
    for name in ("train.py", "optimizer.pt", "trainer_state.json", ".secret.json", "model.safetensors.index.json"):
        (tmp_path / name).write_text(name)
    (tmp_path / "folder.json").mkdir()
    found = side_files(tmp_path)
    assert list(found) == ["README.md", "chat_template.jinja", "config.json", "tokenizer.model", "vocab.txt"]
    assert found["config.json"] == b"config.json"
    assert len(found) == 5
    (tmp_path / "config.json").unlink()
    with pytest.raises(CheckpointError, match="cannot read the file"):
        _ = found["config.json"]
