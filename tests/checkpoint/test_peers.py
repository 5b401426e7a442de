"""Beside the safetensors and transformers libraries: what they write we read, what we write they read, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import nn
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

from cofuse.checkpoint import Memory, SafetensorsFile, content_id, open_local, save

from .models import TORCH_DTYPES, assert_same, names, random_tensor, same_bits, tensors


@given(held=st.dictionaries(names, tensors, max_size=6))
def test_files_of_safetensors_are_read_bit_for_bit(
    held: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "theirs.safetensors"
    save_file(held, path, metadata={"format": "pt", "by": "é"})
    checkpoint = SafetensorsFile(path)
    assert_same(checkpoint, held)
    assert checkpoint.metadata == {"format": "pt", "by": "é"}


@given(held=st.dictionaries(names, tensors, min_size=1, max_size=6))
def test_files_of_ours_are_read_by_safetensors(
    held: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp() / "ours"
    save(Memory(held), folder, threads=1)
    theirs = load_file(folder / "model.safetensors")
    assert set(theirs) == set(held)
    assert all(same_bits(theirs[name], held[name]) for name in held)


@pytest.mark.parametrize("dtype", TORCH_DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (5,), (2, 3, 4)], ids=str)
def test_every_dtype_both_ways(dtype: torch.dtype, shape: tuple[int, ...], tmp_path: Path) -> None:
    held = {"x": random_tensor(3, shape, dtype)}
    save_file(held, tmp_path / "theirs.safetensors")
    assert_same(open_local(tmp_path / "theirs.safetensors"), held)
    save(Memory(held), tmp_path / "ours", threads=1)
    assert same_bits(load_file(tmp_path / "ours" / "model.safetensors")["x"], held["x"])


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(5, 3)
        self.mid = nn.Linear(3, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.emb.weight


def test_names_that_save_model_ties_become_aliases(tmp_path: Path) -> None:
    model = Tied()
    save_model(model, str(tmp_path / "model.safetensors"))
    checkpoint = open_local(tmp_path)
    assert len(checkpoint.aliases) == 1
    assert set(checkpoint.aliases) | set(checkpoint.aliases.values()) == {"emb.weight", "head.weight"}
    assert not set(checkpoint.aliases) & set(checkpoint.metadata)
    assert_same(checkpoint, model.state_dict())


def test_names_that_we_tie_load_model_ties(tmp_path: Path) -> None:
    model, other = Tied(), Tied()
    save(Memory(model.state_dict()), tmp_path / "ours")
    assert load_model(other, tmp_path / "ours" / "model.safetensors") == (set(), [])
    assert torch.equal(other.head.weight, model.emb.weight)


def test_metadata_that_only_looks_like_a_tied_name_is_none(tmp_path: Path) -> None:
    held = {"pt": torch.ones(2), "x": torch.zeros(2)}
    save_file(
        held, tmp_path / "a.safetensors", metadata={"format": "pt", "../up": "x", "x": "pt", "note": "y", "w": "x"}
    )
    assert dict(open_local(tmp_path / "a.safetensors").aliases) == {"w": "x"}


def bert() -> BertModel:
    torch.manual_seed(0)
    config = BertConfig(vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=20)
    return BertModel(config).eval()


@pytest.mark.parametrize("max_shard_bytes", [None, 3000])
def test_transformers_loads_what_we_save(max_shard_bytes: int | None, tmp_path: Path) -> None:
    model = bert()
    files = {"config.json": model.config.to_json_string().encode()}
    written = save(Memory(model.state_dict(), files=files), tmp_path / "ours", max_shard_bytes=max_shard_bytes)
    assert (written.shards > 1) == (max_shard_bytes is not None)
    loaded, info = BertModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert all(same_bits(loaded.state_dict()[k], v) for k, v in model.state_dict().items())


@pytest.mark.parametrize("shard", ["10GB", "3KB"])
def test_we_open_what_transformers_saves(shard: str, tmp_path: Path) -> None:
    model = bert()
    model.save_pretrained(tmp_path, max_shard_size=shard)
    checkpoint = open_local(tmp_path)
    assert_same(checkpoint, model.state_dict())
    assert checkpoint.config["hidden_size"] == 16
    assert content_id(checkpoint) == content_id(Memory(model.state_dict()))


def test_a_tied_language_model_comes_back_from_transformers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=20, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    files = {"config.json": model.config.to_json_string().encode()}
    save(Memory(model.state_dict(), files=files), tmp_path / "ours", max_shard_bytes=1000)
    assert dict(open_local(tmp_path / "ours").aliases) == {"lm_head.weight": "model.embed_tokens.weight"}
    loaded = LlamaForCausalLM.from_pretrained(tmp_path / "ours")
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)


def test_the_index_is_what_transformers_reads(tmp_path: Path) -> None:
    held = {f"t{i}": random_tensor(i, (10,)) for i in range(7)}
    save(Memory(held), tmp_path / "ours", max_shard_bytes=100)
    index = json.loads((tmp_path / "ours" / "model.safetensors.index.json").read_bytes())
    assert index["metadata"] == {"total_size": 280}
    assert list(index["weight_map"]) == sorted(held)
    for name, file in index["weight_map"].items():
        assert same_bits(load_file(tmp_path / "ours" / file)[name], held[name])
    assert sorted(set(index["weight_map"].values())) == [f"model-0000{i}-of-00004.safetensors" for i in range(1, 5)]
