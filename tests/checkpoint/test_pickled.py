"""Pickled weights: their tensors bit for bit, their code never."""

from __future__ import annotations

import os
import pickle
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from cofuse.checkpoint import open_local, save
from cofuse.errors import CheckpointError

from .models import TORCH_DTYPES, assert_same, random_tensor


def held() -> dict[str, torch.Tensor]:
    tensors = {str(dtype).replace("torch.", ""): random_tensor(1, (3, 2), dtype) for dtype in TORCH_DTYPES}
    return {**tensors, "scalar": torch.tensor(3.0), "empty": torch.empty(0, 2), "turned": random_tensor(2, (3, 4)).T}


@pytest.mark.parametrize("name", ["a.bin", "a.pt", "a.pth"])
@pytest.mark.parametrize("zipped", [True, False])
def test_an_ordinary_file_is_read_bit_for_bit(name: str, zipped: bool, tmp_path: Path) -> None:
    tensors = held() if zipped else {"x": random_tensor(0, (4, 5)), "y": random_tensor(1, (3,), torch.bfloat16)}
    torch.save(tensors, tmp_path / name, _use_new_zipfile_serialization=zipped)
    assert_same(open_local(tmp_path / name), tensors)


def test_tied_names_parameters_and_a_wrapped_state_dict(tmp_path: Path) -> None:
    w = torch.nn.Parameter(random_tensor(0, (3, 2)))
    torch.save({"state_dict": {"a": w, "b": w, "c": w.detach()[:1]}, "epoch": 3}, tmp_path / "pytorch_model.bin")
    checkpoint = open_local(tmp_path)
    assert dict(checkpoint.aliases) == {"b": "a"}
    assert checkpoint.names() == ("a", "c")


def test_shards_and_their_index(tmp_path: Path) -> None:
    files = {"x": "pytorch_model-00001-of-00002.bin", "y": "pytorch_model-00002-of-00002.bin"}
    for name, file in files.items():
        torch.save({name: torch.ones(2)}, tmp_path / file)
    (tmp_path / "pytorch_model.bin.index.json").write_text(f'{{"weight_map": {files}}}'.replace("'", '"'))
    checkpoint = open_local(tmp_path)
    assert checkpoint.names() == ("x", "y")
    save(checkpoint, tmp_path / "safe")
    assert_same(open_local(tmp_path / "safe"), {"x": torch.ones(2), "y": torch.ones(2)})
    (tmp_path / files["y"]).unlink()
    with pytest.raises(CheckpointError, match="cannot read the pickled weights"):
        open_local(tmp_path)


class Attack:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("way", ["torch", "old torch", "plain pickle"])
def test_a_pickle_that_wants_to_run_something_is_refused_and_does_not(way: str, tmp_path: Path) -> None:
    marker, path = tmp_path / "owned", tmp_path / "pytorch_model.bin"
    poisoned = {"weight": torch.ones(2), "evil": Attack(marker)}
    if way == "plain pickle":
        path.write_bytes(pickle.dumps(Attack(marker)))
    else:
        torch.save(poisoned, path, _use_new_zipfile_serialization=way == "torch")
    with pytest.raises(CheckpointError, match=r"refused|cannot read") as caught:
        open_local(tmp_path)
    assert str(path) in str(caught.value)
    assert not marker.exists()
    if way == "plain pickle":  # the attack is real
        pickle.loads(path.read_bytes())
        assert marker.exists()


@pytest.mark.parametrize(
    "value", [[1], {"x": 1}, {"x": [torch.ones(1)]}, {3: torch.ones(1)}, torch.ones(2), None], ids=str
)
def test_anything_but_a_state_dict_is_refused(value: Any, tmp_path: Path) -> None:
    torch.save(value, tmp_path / "a.bin")
    with pytest.raises(CheckpointError, match="not a state dict"):
        open_local(tmp_path / "a.bin")


def test_a_tensor_that_is_not_dense_is_refused(tmp_path: Path) -> None:
    torch.save({"x": torch.eye(2).to_sparse()}, tmp_path / "a.bin")
    with pytest.raises(CheckpointError):
        open_local(tmp_path / "a.bin")


def test_a_name_outside_the_alphabet_is_refused(tmp_path: Path) -> None:
    torch.save({"../x": torch.ones(1)}, tmp_path / "a.bin")
    with pytest.raises(CheckpointError, match="not allowed"):
        open_local(tmp_path / "a.bin")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.filterwarnings("ignore")  # what torch says of garbage is its own affair
def test_garbage_gives_a_typed_error(zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    torch.save({"x": torch.arange(6.0), "y": torch.ones(2, 2)}, path, _use_new_zipfile_serialization=zipped)
    whole, r = path.read_bytes(), random.Random(0)
    refused = 0
    # The first hundred bytes and the middle hold the pickle; most bits of the rest are tensor data.
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(r.randint(1, 4)):
            data[r.randrange(len(data) if r.random() < 0.5 else 400)] = r.randrange(256)
        path.write_bytes(bytes(data[: r.randrange(len(data))] if r.random() < 0.3 else data))
        try:
            open_local(path)
        except CheckpointError:
            refused += 1
    assert refused > 30
    for junk in (b"", b"garbage", b"\x80\x02", b"PK\x03\x04" + b"\0" * 100):
        path.write_bytes(junk)
        with pytest.raises(CheckpointError):
            open_local(path)
