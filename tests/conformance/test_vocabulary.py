"""Vocabularies joined by mergekit and by us: each token has the same row, whatever its number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from fuse.llama import files, tensors
from fuse.vocabularies import trained

from cofuse import address
from cofuse.checkpoint import Memory, open_local
from cofuse.checkpoint.views import with_files
from cofuse.fuse import fuse_recipe, read_recipe
from cofuse.fuse.tokenizer import read_tokenizer

from .conftest import Oracle

PART = 1e-6  # of the largest value


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three Llamas with tokenizers of their own: a pads its vocabulary by 7 rows, c by 3."""
    folder = tmp_path_factory.mktemp("vocabularies")
    for seed, (which, spare) in enumerate((("a", 7), ("b", 0), ("c", 3))):
        tokenizer = trained(which)
        names = [f"row {i}" for i in range(tokenizer.get_vocab_size() + spare)]
        config = json.loads(files(names, "float32")["config.json"]) | {"bos_token_id": 0, "eos_token_id": 1}
        beside = {
            "config.json": json.dumps(config).encode(),
            "tokenizer.json": tokenizer.to_str().encode(),
            "tokenizer_config.json": b'{"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}',
        }
        with_files(Memory(tensors(names, seed)), beside).save(folder / which)
    return folder


@pytest.mark.parametrize(
    ("method", "base", "tokenizer"),
    [
        # Without a base mergekit takes the first of a set of models for it, which changes from run to run.
        ("linear", None, {"source": "./b", "pad_to_multiple_of": 1}),
        ("task_arithmetic", "./a", {"source": "union", "pad_to_multiple_of": 1}),
        ("task_arithmetic", "./a", {"source": "union", "pad_to_multiple_of": 64}),
        ("task_arithmetic", "./b", {"source": "union"}),
        ("task_arithmetic", "./a", {"source": "base", "pad_to_multiple_of": 1}),
        ("task_arithmetic", "./a", {"source": "./c", "pad_to_multiple_of": 32}),
        (
            "task_arithmetic",
            "./b",
            {
                "source": "union",
                "tokens": {
                    "<|im_end|>": {"source": "./c"},
                    "<|im_start|>": {
                        "source": {"kind": "model_token", "model": "./a", "token": "</s>"},
                        "force": True,
                    },
                    "<pad>": {"source": {"kind": "zero"}, "force": True},
                    "<new>": {"source": {"kind": "model_token", "model": "./b", "token_id": 5}},
                },
            },
        ),
    ],
)
def test_each_token_has_mergekits_row(
    method: str, base: str | None, tokenizer: dict[str, Any], models: Path, oracle: Oracle, tmp_path: Path
) -> None:
    recipe: dict[str, Any] = {
        "merge_method": method,
        "models": [{"model": f"./{w}", "parameters": {"weight": 0.5 + 0.1 * i}} for i, w in enumerate("abc")],
        "parameters": {"normalize": False},
        "dtype": "float32",
        "tokenizer": tokenizer,
    }
    if base is not None:
        recipe |= {"base_model": base, "models": [m for m in recipe["models"] if m["model"] != base]}
    text = yaml.safe_dump(recipe, sort_keys=False)
    for which in "abc":
        text = text.replace(f"./{which}", str(models / which))
    path = tmp_path / "r.yaml"
    path.write_text(text)
    oracle.merge(path, tmp_path / "theirs")
    read = read_recipe(path)
    fuse_recipe(read, {name: address.open(name) for name in read.addresses}).save(tmp_path / "ours")
    mine, peer = open_local(tmp_path / "ours"), open_local(tmp_path / "theirs")
    tokens, their_tokens = read_tokenizer(mine), read_tokenizer(peer)
    assert tokens is not None
    assert their_tokens is not None
    assert set(tokens.ids) == set(their_tokens.ids)
    assert mine.config["vocab_size"] == peer.config["vocab_size"]
    assert {*mine.names()} == {*peer.names()}
    for name in peer.names():
        got, wanted = mine.read(name), peer.read(name)
        assert got.shape == wanted.shape, name
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            count = tokens.size
            assert (got[count:] - wanted[count:]).abs().sum() <= PART * max(1, len(got) - count), name
            order = [tokens.ids[t] for t in their_tokens.ids]
            got, wanted = got[order], wanted[list(their_tokens.ids.values())]
        assert (got - wanted).abs().max() <= PART * wanted.abs().max(), name
