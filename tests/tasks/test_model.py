"""Bodies in torch: loaded whatever class they were saved from, pooled without regard to padding, and saved again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    BertForMaskedLM,
    BertForSequenceClassification,
    ConvNextConfig,
    ConvNextModel,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    ResNetConfig,
    ResNetForImageClassification,
    RobertaConfig,
    RobertaForMaskedLM,
    SwinConfig,
    SwinModel,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

from cofuse.checkpoint import Checkpoint, Memory, body, content_id, open_local
from cofuse.errors import TaskError
from cofuse.tasks.finetune import Finetuning, TaskModel, finetune
from cofuse.tasks.model import Head, autocast, body_checkpoint, body_width, has_bf16, load_body, new_body, pooled

from .tiny import BERT, VIT, bert, body_of, even, opinion_task, text_examples, tokenizer_files, vit

SMALL = {k: v for k, v in BERT.items() if k != "model_type"}
T5 = {"vocab_size": 24, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}
RESNET = {"num_channels": 1, "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
SWIN = {
    "image_size": 8,
    "patch_size": 2,
    "num_channels": 1,
    "embed_dim": 8,
    "depths": [1, 1],
    "num_heads": [1, 2],
    "window_size": 2,
}
CONVNEXT = {"num_channels": 1, "patch_size": 2, "hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}

# How a base was saved: its class, its configuration, whether its inputs are images, its width.
BASES: dict[str, tuple[Any, Any, bool, int]] = {
    "bert with a head": (BertForSequenceClassification, AutoConfig.for_model("bert", **SMALL), False, 16),
    "bert for masked words": (BertForMaskedLM, AutoConfig.for_model("bert", **SMALL), False, 16),
    "roberta for masked words": (RobertaForMaskedLM, RobertaConfig(**SMALL, pad_token_id=0), False, 16),
    "distilbert with a head": (DistilBertForSequenceClassification, DistilBertConfig(vocab_size=24, dim=16, hidden_dim=24, n_layers=1, n_heads=2), False, 16),
    "t5": (T5ForConditionalGeneration, T5Config(**T5), False, 16),
    "t5 encoder": (T5EncoderModel, T5Config(**T5), False, 16),
    "gpt2": (GPT2LMHeadModel, GPT2Config(vocab_size=24, n_embd=16, n_layer=1, n_head=2, n_positions=40, bos_token_id=0, eos_token_id=0), False, 16),
    "vit with a head": (ViTForImageClassification, ViTConfig(**{k: v for k, v in VIT.items() if k != "model_type"}), True, 16),
    "resnet with a head": (ResNetForImageClassification, ResNetConfig(**RESNET), True, 16),
    "swin": (SwinModel, SwinConfig(**SWIN), True, 16),
    "convnext": (ConvNextModel, ConvNextConfig(**CONVNEXT), True, 16),
}  # fmt: skip


def saved(kind: str, folder: Path, seed: int = 0) -> Checkpoint:
    make, config, _, _ = BASES[kind]
    torch.manual_seed(seed)
    make(config).save_pretrained(folder)
    for name, data in tokenizer_files(types=kind.startswith("bert")).items():
        (folder / name).write_bytes(data)
    return open_local(folder)


@pytest.mark.parametrize("kind", BASES)
def test_a_body_goes_to_torch_and_back(kind: str, tmp_path: Path) -> None:
    base = saved(kind, tmp_path / "base")
    module = load_body(base)
    assert body_width(module) == BASES[kind][3]
    assert all(p.requires_grad and p.dtype == torch.float32 for p in module.parameters())
    back = body(body_checkpoint(module, base), like=base)
    assert content_id(back) == content_id(base)  # bit for bit, the head of the base's class included
    # What training changes is what comes back changed.
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1)
    back = body(body_checkpoint(module, base), like=base)
    changed = {n for n in base.names() if not torch.equal(base.read(n), back.read(n))}
    inside = {n for n in base.names() if n not in back.choices.kept and "running" not in n and "num_batches" not in n}
    assert {n for n in inside if base.read(n).is_floating_point()} == changed


@pytest.mark.parametrize("kind", BASES)
def test_a_body_computes_what_its_own_class_computes(kind: str, tmp_path: Path) -> None:
    base = saved(kind, tmp_path / "base", seed=3)
    module = load_body(base).eval()
    theirs = AutoModel.from_pretrained(tmp_path / "base").eval()
    if BASES[kind][2]:
        batch = {"pixel_values": torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))}
    else:
        batch = {"input_ids": torch.tensor([[2, 5, 9, 3]]), "attention_mask": torch.ones(1, 4, dtype=torch.int64)}
    own_batch = batch
    if kind.startswith("t5"):
        module, theirs = module.get_encoder(), theirs.get_encoder()
    with torch.inference_mode():
        expected = theirs(**own_batch).last_hidden_state
        torch.testing.assert_close(module(**own_batch).last_hidden_state, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", BASES)
def test_every_architecture_trains(kind: str, tmp_path: Path) -> None:
    base = saved(kind, tmp_path / "base")
    images = BASES[kind][2]
    task = even() if images else opinion_task(tmp_path / "task")
    settings = Finetuning(
        steps=2,
        batch_size=8,
        learning_rate=1e-3,
        max_length=32,
        precision="fp32",
        warmup=0,
        patience=1,
        evaluate_every=1,
    )
    train = task.examples("train")
    tuned = finetune(base, task, train.first(16), settings, seed=0, validation=task.examples("validation").first(8))
    assert tuned.steps == 2
    assert len(tuned.predict(train.first(5))) == 5
    back = body(body_checkpoint(tuned.model.body, base), like=base)
    assert set(back.names()) == set(base.names())
    assert content_id(back) != content_id(base)


def test_a_pooler_that_the_base_lacks_is_always_the_same() -> None:
    base = bert()
    bare = Memory({n: base.read(n) for n in base.names() if "pooler" not in n}, files=base.files)
    first = load_body(bare).state_dict()["pooler.dense.weight"].clone()
    load_body(base)  # fills the pooler of the module that is kept
    assert torch.equal(load_body(bare).state_dict()["pooler.dense.weight"], first)
    assert "pooler.dense.weight" not in body_checkpoint(load_body(bare), bare)


def test_one_module_is_filled_anew() -> None:
    one, two = bert(1), bert(2)
    assert load_body(one) is load_body(two)
    name = "embeddings.word_embeddings.weight"
    assert torch.equal(load_body(two).state_dict()[name], two.read(name))
    module = load_body(one)
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    assert all(p.requires_grad for p in load_body(one).parameters())


def test_half_precision_bases_come_back_in_half_precision() -> None:
    base = body_of(BERT, dtype=torch.bfloat16)
    module = load_body(base)
    assert module.dtype == torch.float32
    assert content_id(body(body_checkpoint(module, base), like=base)) == content_id(base)


def test_dropout_is_overridden_whether_the_config_names_it_or_not() -> None:
    def rates(checkpoint: Memory, dropout: float | None) -> set[float]:
        return {m.p for m in load_body(checkpoint, dropout=dropout).modules() if isinstance(m, torch.nn.Dropout)}

    assert rates(bert(), None) == {0.1}
    assert rates(bert(), 0.0) == {0.0}
    assert rates(bert(hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.3), 0.2) == {0.2}
    assert rates(bert(hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.3), None) == {0.3}


def test_what_does_not_fit_is_one_error() -> None:
    base = bert()
    tensors = {n: base.read(n) for n in base.names()}
    with pytest.raises(TaskError, match=r"no config\.json"):
        load_body(Memory(tensors))
    with pytest.raises(TaskError, match="cannot build the model"):
        load_body(bert().__class__(tensors, files={"config.json": b'{"model_type": "brt"}'}))
    with pytest.raises(TaskError, match="cannot build the model"):
        new_body({**BERT, "hidden_size": 15}, seed=0)
    with pytest.raises(TaskError, match="does not fit the model's config") as caught:
        load_body(Memory({**tensors, "embeddings.LayerNorm.bias": torch.zeros(9)}, files=base.files))
    assert "embeddings.LayerNorm.bias" in str(caught.value.where)
    with pytest.raises(TaskError, match="do not belong to the config"):
        load_body(Memory({"x": torch.zeros(1)}, files=base.files))


def test_random_numbers_of_the_caller_are_left_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    new_body(BERT, seed=1)
    Head(4, 2, 0.0, seed=1)
    assert torch.equal(torch.rand(3), expected)
    heads = [Head(4, 2, 0.0, seed=s).linear.weight for s in (1, 1, 2)]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_padding_does_not_matter(pooling: Any, tmp_path: Path) -> None:
    task = opinion_task(tmp_path / "task")
    base = bert()
    texts = ["good", "the film is so very good", " ".join(["far near here"] * 7)]
    module = load_body(base).eval()
    encoded = task.what.encode(text_examples(texts, [0, 0, 0]), base, 32)
    with torch.inference_mode():
        together = pooled(module, task.what.collate(encoded.rows), pooling)
        for i, row in enumerate(encoded.rows):
            torch.testing.assert_close(
                pooled(module, task.what.collate([row]), pooling)[0], together[i], rtol=0, atol=1e-5
            )
        # Without any padding at all, by hand.
        ids = torch.tensor([encoded.rows[1]["input_ids"]])
        hidden = module(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        expected = hidden.mean(1) if pooling == "mean" else hidden[:, 0]
    torch.testing.assert_close(together[1], expected[0], rtol=0, atol=1e-5)


def test_pairs_are_told_apart_by_their_types(tmp_path: Path) -> None:
    task = opinion_task(tmp_path / "task").model_copy(update={"kind": "pair_classification"})
    encoded = task.what.encode(text_examples(["good film", "bad"], [0, 1], ["book", "so very far"]), bert(), 32)
    batch = task.what.collate(encoded.rows)
    assert encoded.lengths.tolist() == [6, 7]
    assert batch["input_ids"].shape == (2, 8)
    assert batch["token_type_ids"][0].tolist() == [0, 0, 0, 0, 1, 1, 0, 0]
    assert batch["attention_mask"].sum(1).tolist() == [6, 7]
    cut = task.what.encode(text_examples(["the " * 50], [0], ["book " * 50]), bert(), 10)
    assert cut.lengths.tolist() == [10]


def test_images_are_pooled_over_their_patches() -> None:
    images = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    module = load_body(vit()).eval()
    with torch.inference_mode():
        hidden = module(pixel_values=images).last_hidden_state
        assert hidden.shape[1] == 5  # a class token and four patches
        assert torch.equal(pooled(module, {"pixel_values": images}, "mean"), hidden[:, 1:].mean(1))
        assert torch.equal(pooled(module, {"pixel_values": images}, "cls"), hidden[:, 0])
        for make, config in ((SwinModel, SwinConfig(**SWIN)), (ConvNextModel, ConvNextConfig(**CONVNEXT))):
            torch.manual_seed(0)
            plain = make(config).eval()
            hidden = plain(pixel_values=images).last_hidden_state
            every_place = hidden.flatten(2).mean(2) if hidden.dim() == 4 else hidden.mean(1)
            torch.testing.assert_close(pooled(plain, {"pixel_values": images}, "mean"), every_place)


def test_bfloat16_is_used_where_asked_or_where_the_processor_has_it() -> None:
    x, w = torch.randn(4, 4), torch.randn(4, 4)
    for precision, dtype in (
        ("fp32", torch.float32),
        ("bf16", torch.bfloat16),
        ("auto", torch.bfloat16 if has_bf16() else torch.float32),
    ):
        with autocast(precision):  # type: ignore[arg-type]
            assert (x @ w).dtype == dtype


def test_a_model_without_a_tokenizer_says_so(tmp_path: Path) -> None:
    task = opinion_task(tmp_path / "task")
    base = bert()
    bare = Memory({n: base.read(n) for n in base.names()}, files={"config.json": base.files["config.json"]})
    with pytest.raises(TaskError, match="no tokenizer"):
        task.what.encode(task.examples("train"), bare, 16)


def test_a_task_model_gives_loss_and_logits(tmp_path: Path) -> None:
    task = even()
    module = load_body(vit()).eval()
    model = TaskModel(module, Head(16, 2, 0.0, 0), task.what, "mean").eval()
    some = task.examples("test").first(6)
    batch = task.what.collate(task.what.encode(some, vit(), 0).rows)
    out = model(labels=torch.from_numpy(some.labels), **batch)
    expected = torch.nn.functional.cross_entropy(out["logits"], torch.from_numpy(some.labels))
    assert torch.equal(out["loss"], expected)
    assert set(model(**batch)) == {"logits"}
    assert (
        task.what.predict(out["logits"].detach().numpy()).tolist()
        == np.argmax(out["logits"].detach().numpy(), 1).tolist()
    )
