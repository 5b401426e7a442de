"""Adapting a body to unlabelled texts: what is hidden, what is learnt, and that the same seed gives the same body."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from cofuse.checkpoint import Checkpoint, Memory, content_id
from cofuse.errors import TaskError
from cofuse.tasks import Examples
from cofuse.tasks.adapt import Hide, MaskedLanguage, adapt, masked_model
from cofuse.tasks.kinds.text import collate, encode, tokenizer_of
from cofuse.tasks.training import Rows

from . import tiny

TEXTS = ["the film is good here", "a book is not far", "so very near there", "the book is bad"] * 8


def base() -> Memory:
    """A tiny body whose tokenizer has a mask."""
    body = tiny.bert()
    said = {**json.loads(body.files["tokenizer_config.json"]), "mask_token": "[MASK]"}
    files = {**body.files, "tokenizer_config.json": json.dumps(said).encode()}
    return Memory({n: body.read(n) for n in body.names()}, files=files)


def rows(model: Memory, texts: list[str]) -> Rows:
    return Rows(encode(Examples({"text": texts}, np.zeros(len(texts), np.int64)), model, 16))


def test_of_the_words_a_share_is_hidden_and_nothing_else() -> None:
    model = base()
    tokenizer = tokenizer_of(model)
    hide = Hide(tokenizer.mask_token_id, tuple(tokenizer.all_special_ids), len(tokenizer), 0.3, 0)
    items = rows(model, TEXTS * 20)
    whole = collate([items[i]["row"] for i in range(len(items))])["input_ids"]
    batch = hide([items[i] for i in range(len(items))])
    ids, labels = batch["input_ids"], batch["labels"]
    chosen = labels >= 0
    special = torch.isin(whole, torch.tensor(tokenizer.all_special_ids))
    assert torch.equal(ids[~chosen], whole[~chosen])
    whole_labels = whole[chosen]
    assert torch.equal(labels[chosen], whole_labels)
    assert not (chosen & special).any()
    assert abs(float(chosen[~special].float().mean()) - 0.3) < 0.03
    hidden = ids[chosen]
    assert abs(float((hidden == tokenizer.mask_token_id).float().mean()) - 0.8) < 0.04
    assert 0.07 < float((hidden == whole_labels).float().mean()) < 0.16  # 10 %, and any token may be the same


def test_it_learns_to_fill_in_and_changes_only_the_body() -> None:
    model = base()

    def loss(of: Checkpoint) -> float:
        reader = masked_model(of, 0).eval()
        tokenizer = tokenizer_of(of)
        hide = Hide(tokenizer.mask_token_id, tuple(tokenizer.all_special_ids), len(tokenizer), 0.3, 1)
        items = rows(of, TEXTS)
        with torch.no_grad():
            return float(reader(**hide([items[i] for i in range(len(items))])).loss)  # type: ignore[operator]

    settings = MaskedLanguage(steps=60, batch_size=16, learning_rate=5e-3, share=0.3, precision="fp32")
    found = adapt(model, TEXTS, settings, seed=0)
    assert found.names() == model.names()
    assert torch.equal(found.read("pooler.dense.weight"), model.read("pooler.dense.weight"))
    assert all(found.spec(name) == model.spec(name) for name in found.names())
    assert dict(found.files) == dict(model.files)
    assert loss(found) < loss(model) - 0.3


def test_a_seed_decides_everything() -> None:
    settings = MaskedLanguage(steps=3, batch_size=4, precision="fp32")
    before = torch.get_rng_state()
    first = content_id(adapt(base(), TEXTS, settings, seed=1))
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(5)
    assert content_id(adapt(base(), TEXTS, settings, seed=1)) == first
    assert content_id(adapt(base(), TEXTS, settings, seed=2)) != first


def test_what_cannot_be_adapted_is_told() -> None:
    settings = MaskedLanguage(steps=1)
    with pytest.raises(TaskError, match="no texts"):
        adapt(base(), [], settings, seed=0)
    with pytest.raises(TaskError, match="no token to hide"):
        adapt(tiny.bert(), TEXTS, settings, seed=0)
    without = base()
    with pytest.raises(TaskError, match="no config"):
        masked_model(Memory({n: without.read(n) for n in without.names()}), 0)
    files = dict(without.files)
    with pytest.raises(TaskError, match="do not belong to the config"):
        masked_model(Memory({f"h.{i}.weight": torch.ones(2) for i in range(50)}, files=files), 0)
    cut = {
        n: without.read(n)[:-1] if n.endswith("word_embeddings.weight") else without.read(n) for n in without.names()
    }
    with pytest.raises(TaskError, match="does not fit the model's config") as caught:
        masked_model(Memory(cut, files=files, where="cut"), 0)
    assert "cut: " in str(caught.value.where)
    assert "word_embeddings.weight" in str(caught.value.where)
    with pytest.raises(TaskError, match="no masked language model"):
        masked_model(Memory({"x": torch.ones(1)}, files={"config.json": b'{"model_type": "vit"}'}), 0)
