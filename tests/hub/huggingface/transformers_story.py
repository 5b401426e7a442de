"""Models made from configurations, pushed and loaded by `transformers`: whole, in shards, from a branch, as an adapter's base."""

from __future__ import annotations

import sys

import torch
from huggingface_hub import HfApi
from transformers import AutoModel, BertConfig, BertModel, GPT2Config, GPT2LMHeadModel

SMALL = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 37}


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    """Whether two models have the same tensors."""
    one, two = a.state_dict(), b.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def story(owner: str) -> None:
    """Push, load, push again, load both."""
    torch.manual_seed(0)
    first = BertModel(BertConfig(**SMALL))
    first.push_to_hub(f"{owner}/bert", commit_message="first")
    assert same(first, AutoModel.from_pretrained(f"{owner}/bert"))
    sha = HfApi().model_info(f"{owner}/bert").sha

    second = BertModel(BertConfig(**SMALL))
    second.push_to_hub(f"{owner}/bert", commit_message="second")
    assert same(second, BertModel.from_pretrained(f"{owner}/bert"))
    assert same(first, BertModel.from_pretrained(f"{owner}/bert", revision=sha))

    HfApi().create_branch(f"{owner}/bert", branch="runs/first", revision=sha)
    assert same(first, AutoModel.from_pretrained(f"{owner}/bert", revision="runs/first"))

    # Tied weights, in shards
    sharded = GPT2LMHeadModel(GPT2Config(vocab_size=501, n_positions=16, n_embd=64, n_layer=3, n_head=2))
    sharded.push_to_hub(f"{owner}/shards", max_shard_size="100KB")
    names = [s.rfilename for s in HfApi().model_info(f"{owner}/shards").siblings]
    assert sum(name.endswith(".safetensors") for name in names) > 2
    assert same(sharded, GPT2LMHeadModel.from_pretrained(f"{owner}/shards"))
    total = HfApi().get_safetensors_metadata(f"{owner}/shards").parameter_count["F32"]
    assert total == sum(p.numel() for p in sharded.parameters())


if __name__ == "__main__":
    story(sys.argv[1])
    print("told")
