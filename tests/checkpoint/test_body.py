"""The body of a tuned model has its base's names and shapes, whatever class it was tuned in."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoModel,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    DistilBertModel,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2Model,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    LlamaModel,
    RobertaConfig,
    RobertaForSequenceClassification,
    RobertaModel,
    T5Config,
    T5ForSequenceClassification,
    T5Model,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

from cofuse.checkpoint import Checkpoint, Memory, body, content_id, open_local, save
from cofuse.checkpoint.body import best_prefix, with_prefix
from cofuse.errors import CheckpointError

from .models import same_bits

SMALL = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
T5 = {"vocab_size": 20, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}
VIT = {"image_size": 8, "patch_size": 4, **{k: v for k, v in SMALL.items() if k != "vocab_size"}}
DISTIL = {"vocab_size": 20, "dim": 16, "hidden_dim": 24, "n_layers": 1, "n_heads": 2}
GPT2 = {
    "vocab_size": 20,
    "n_embd": 16,
    "n_layer": 1,
    "n_head": 2,
    "n_positions": 8,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
LLAMA = {**SMALL, "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2}

# base class, tuned class, config, prefix, what the tuned class lacks
PAIRS: dict[str, tuple[Any, Any, Any, str, str]] = {
    "bert": (BertModel, BertForSequenceClassification, BertConfig(**SMALL), "bert.", ""),
    "roberta": (RobertaModel, RobertaForSequenceClassification, RobertaConfig(**SMALL), "roberta.", "pooler."),
    "distilbert": (DistilBertModel, DistilBertForSequenceClassification, DistilBertConfig(**DISTIL), "distilbert.", ""),
    "t5": (T5Model, T5ForSequenceClassification, T5Config(**T5), "transformer.", ""),
    "vit": (ViTModel, ViTForImageClassification, ViTConfig(**VIT), "vit.", "pooler."),
    "gpt2": (GPT2Model, GPT2ForSequenceClassification, GPT2Config(**GPT2), "transformer.", ""),
    "masked": (BertForMaskedLM, BertForSequenceClassification, BertConfig(**SMALL), "", "cls."),
    "generating": (LlamaForCausalLM, LlamaModel, LlamaConfig(**LLAMA), "+model.", "lm_head."),
    "bare": (BertForSequenceClassification, BertModel, BertConfig(**SMALL), "+bert.", "classifier."),
}  # fmt: skip


def saved(make: Callable[[Any], nn.Module], config: Any, folder: Path, seed: int) -> Checkpoint:
    torch.manual_seed(seed)
    make(config).save_pretrained(folder)
    return open_local(folder)


@pytest.mark.parametrize("case", PAIRS)
def test_a_class_gives_the_body_that_its_base_has(case: str, tmp_path: Path) -> None:
    base_class, tuned_class, config, prefix, lacks = PAIRS[case]
    base = saved(base_class, config, tmp_path / "base", 0)
    tuned = saved(tuned_class, config, tmp_path / "tuned", 1)
    mine = body(tuned, like=base)
    assert mine.names() == base.names()
    assert all(mine.spec(name) == base.spec(name) for name in base.names())
    assert mine.choices.prefix == prefix
    assert all(name.startswith(lacks) for name in mine.choices.kept) or lacks == ""
    assert bool(mine.choices.kept) == bool(lacks)
    for name in base.names():
        if name in mine.choices.kept:
            assert same_bits(mine.read(name), base.read(name))
        else:
            there = with_prefix(name, prefix)
            assert there is not None
            assert same_bits(mine.read(name), tuned.read(there))
    assert dict(mine.files) == dict(base.files)
    used = {with_prefix(name, prefix) for name in base.names()}
    assert set(mine.choices.dropped) == set(tuned.names()) - used
    assert not any("encoder" in name or "layer." in name for name in mine.choices.dropped)


@pytest.mark.parametrize("case", ["bert", "roberta", "t5", "vit"])
def test_the_body_loads_as_an_auto_model(case: str, tmp_path: Path) -> None:
    base_class, tuned_class, config, prefix, lacks = PAIRS[case]
    base = saved(base_class, config, tmp_path / "base", 0)
    tuned = saved(tuned_class, config, tmp_path / "tuned", 1)
    save(body(tuned, like=base), tmp_path / "body")
    model, info = AutoModel.from_pretrained(tmp_path / "body", output_loading_info=True)
    assert type(model) is base_class
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    whole = tuned_class.from_pretrained(tmp_path / "tuned").state_dict()
    for name, tensor in model.state_dict().items():
        if not (lacks and name.startswith(lacks)):
            assert torch.equal(tensor, whole[prefix + name]), name


def test_a_body_is_its_own_body(tmp_path: Path) -> None:
    base = saved(BertModel, BertConfig(**SMALL), tmp_path, 0)
    mine = body(base, like=base)
    assert content_id(mine) == content_id(base)
    assert (mine.choices.prefix, mine.choices.dropped, mine.choices.kept) == ("", (), ())
    again = body(mine, like=base)
    assert content_id(again) == content_id(base)


def llama(tuned_class: Any, tmp_path: Path, seed: int) -> Checkpoint:
    config = LlamaConfig(
        vocab_size=20, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(seed)
    return Memory(tuned_class(config).state_dict())


@pytest.mark.parametrize("kept", ["model.embed_tokens.weight", "lm_head.weight"])
def test_a_tied_base_takes_the_tensor_under_whichever_name_the_tuned_class_has(kept: str, tmp_path: Path) -> None:
    held = llama(LlamaForCausalLM, tmp_path, 0)
    names = sorted([*held.names(), *held.aliases], key=lambda name: name != kept)
    weight = held.read("lm_head.weight")
    base = Memory({n: weight if n in ("lm_head.weight", "model.embed_tokens.weight") else held.read(n) for n in names})
    assert kept in base.names()
    tuned = llama(LlamaForSequenceClassification, tmp_path, 1)
    mine = body(tuned, like=base)
    assert mine.choices.kept == ()
    assert mine.choices.dropped == ("score.weight",)
    assert same_bits(mine.read(kept), tuned.read("model.embed_tokens.weight"))


def small(**changes: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"a.w": torch.zeros(2, 3), "b.w": torch.zeros(4), **{k.replace("_", "."): v for k, v in changes.items()}}


@pytest.mark.parametrize(
    ("tensor", "says", "got"),
    [(torch.zeros(3, 2), "another shape", "[3, 2]"), (torch.zeros(2, 3).half(), "another dtype", "F16")],
)
def test_a_tensor_of_another_shape_or_dtype_is_refused(tensor: torch.Tensor, says: str, got: str) -> None:
    with pytest.raises(CheckpointError, match=says) as caught:
        body(Memory(small(a_w=tensor), where="tuned"), like=Memory(small()))
    assert caught.value.where == "tuned: a.w"
    assert caught.value.got == got


@pytest.mark.parametrize(
    "tuned",
    [
        {},
        {"other.w": torch.zeros(2, 3)},
        {"b.w": torch.zeros(4)},  # less than half of the base's numbers
    ],
)
def test_an_unrelated_model_is_refused(tuned: dict[str, torch.Tensor]) -> None:
    with pytest.raises(CheckpointError, match="most of the base is missing") as caught:
        body(Memory(tuned, where="tuned"), like=Memory(small(), where="the base"))
    assert caught.value.hint is not None
    assert "the base" in caught.value.hint


def test_an_unrelated_model_of_transformers_is_refused(tmp_path: Path) -> None:
    base = saved(BertModel, BertConfig(**SMALL), tmp_path / "a", 0)
    for i, (make, config) in enumerate(
        [(ViTModel, ViTConfig(**VIT)), (T5Model, T5Config(**T5)), (GPT2Model, GPT2Config(**GPT2))]
    ):
        with pytest.raises(CheckpointError, match="most of the base is missing"):
            body(saved(make, config, tmp_path / f"b{i}", 1), like=base)
    wide = saved(BertForSequenceClassification, BertConfig(**{**SMALL, "hidden_size": 32}), tmp_path / "c", 1)
    with pytest.raises(CheckpointError, match="another shape"):
        body(wide, like=base)


def test_a_base_of_whole_numbers_has_a_body_too() -> None:
    ints = {"a.w": torch.zeros(4, dtype=torch.int8)}
    assert body(Memory({"x.a.w": torch.ones(4, dtype=torch.int8)}), like=Memory(ints)).choices.prefix == "x."
    with pytest.raises(CheckpointError, match="most of the base is missing"):
        body(Memory({"q": torch.ones(4, dtype=torch.int8)}), like=Memory(ints))


@pytest.mark.parametrize(
    ("tuned", "base", "prefix"),
    [
        ({"a.w"}, {"a.w"}, ""),
        ({"x.a.w", "x.b.w"}, {"a.w", "b.w"}, "x."),
        ({"m.x.a.w", "m.x.b.w", "head"}, {"a.w", "b.w"}, "m.x."),
        ({"a.w", "b.w"}, {"x.a.w", "x.b.w", "cls.w"}, "+x."),
        ({"x.a", "y.a"}, {"a"}, "x."),
        ({"a", "x.a"}, {"a"}, ""),
        ({"q"}, {"a"}, ""),
        (set(), {"a"}, ""),
    ],
)
def test_the_prefix_makes_most_names_agree(tuned: set[str], base: set[str], prefix: str) -> None:
    assert best_prefix(tuned, base) == prefix


def test_a_file_of_many_prefixes_does_not_hold_anybody_up() -> None:
    tuned = {f"p{i}.x{i}.w" for i in range(50_000)}
    base = {f"x{i}.w" for i in range(50_000)}
    started = time.process_time()
    best_prefix(tuned, base)
    assert time.process_time() - started < 5  # trying each prefix on each name takes an hour
