"""A model that is ready to be measured: heads, names, batches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tasks.tiny import BERT, bert, even, opinion_task, tokenizer_files, vit

from cofuse.checkpoint import Memory, body, content_id
from cofuse.errors import TaskError
from cofuse.measure.finetuning.masks import mask_of
from cofuse.measure.statistics.fisher import fisher
from cofuse.measure.statistics.record import read_record
from cofuse.measure.subject import open_subject, tuned_subject
from cofuse.patch.choice import choice
from cofuse.tasks import Task
from cofuse.tasks.finetune import Finetuning, finetune
from cofuse.tasks.masked import masked_checkpoint
from cofuse.tasks.model import body_checkpoint
from cofuse.tasks.peft import Lora

from .statistics.slow_fisher import assert_same, slow_fisher


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    return opinion_task(tmp_path_factory.mktemp("task") / "t")


def headed(auto: str, config: dict[str, Any], **changes: Any) -> Memory:
    """A random checkpoint with a head, as transformers saves it."""
    settings = {**config, **changes}
    kind = settings.pop("model_type")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = getattr(transformers, auto).from_config(transformers.AutoConfig.for_model(kind, **settings))
    said = {"model_type": kind, **settings, "architectures": [type(module).__name__]}
    files = {"config.json": json.dumps(said).encode(), **tokenizer_files(types=kind == "bert")}
    tied = {name for name in module.state_dict() if name in (module._tied_weights_keys or {})}
    tensors = {
        n: t.clone() for n, t in module.state_dict().items() if n not in tied or not settings["tie_word_embeddings"]
    }
    return Memory(tensors, files=files, where=f"headed {kind}")


GPT2 = {"model_type": "gpt2", "vocab_size": 24, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16}
T5: dict[str, Any] = {
    "model_type": "t5", "vocab_size": 24, "d_model": 16, "d_kv": 8, "d_ff": 20, "num_layers": 1, "num_heads": 2,
    "decoder_start_token_id": 0,
}  # fmt: skip


@pytest.mark.parametrize("head", ["probe", "random"])
def test_the_tasks_head_is_not_measured_and_every_tensor_of_the_body_is(task: Task, head: Any) -> None:
    subject = open_subject(bert(), task, head=head, max_length=16)
    measured = subject.parameters()
    floats = {n for n in bert().names() if bert().spec(n).dtype == "F32"}
    assert set(measured) == floats
    for name, parameter in measured.items():
        assert torch.equal(parameter.detach(), bert().read(name))
    assert not subject.module.training
    examples = task.examples("test").first(9)
    got = fisher(subject, examples, kind="expected", batch_size=4)
    assert_same(got, slow_fisher(subject, examples, "expected"))
    record = read_record(got)
    assert (record.head, record.task_id, record.examples) == (head, task.id, 9)
    assert record.model == content_id(bert())


def test_a_probe_knows_its_task_better_than_chance_and_is_the_same_again(task: Task) -> None:
    examples = task.examples("train")

    def right(head: Any) -> float:
        subject = open_subject(bert(), task, head=head, max_length=16, seed=3)
        with torch.no_grad():
            said = {
                int(r): int(c)
                for b in subject.batches(examples, 16)
                for r, c in zip(b.rows, subject.logits(b).argmax(1), strict=True)
            }
        return float(np.mean([said[i] == examples.labels[i] for i in range(len(examples))]))

    assert right("probe") == right("probe") > 0.7
    heads = [open_subject(bert(), task, max_length=16).module.get_parameter("head.linear.weight") for _ in range(2)]
    assert torch.equal(*heads)


def test_a_feature_that_is_constant_but_for_rounding_gets_no_weight(task: Task) -> None:
    whole = bert()
    tensors = {name: whole.read(name) for name in whole.names()}
    tensors["encoder.layer.1.output.LayerNorm.weight"][3] = 1e-9
    subject = open_subject(Memory(tensors, files=whole.files), task, max_length=16)
    weight = subject.module.get_parameter("head.linear.weight").detach()
    assert float(weight[:, 3].abs().max()) <= float(weight.abs().median()) * 1e-6


def test_batches_hold_every_example_once(task: Task) -> None:
    subject = open_subject(bert(), task, head="random", max_length=16)
    examples = task.examples("test")
    rows = np.concatenate([batch.rows for batch in subject.batches(examples, 7)])
    assert sorted(rows.tolist()) == list(range(len(examples)))
    for batch in subject.batches(examples, 7):
        assert batch.labels.tolist() == examples.labels[batch.rows].tolist()
        assert subject.logits(batch).shape == (len(batch), 2)


def test_two_subjects_are_two_models(task: Task) -> None:
    one, other = (open_subject(bert(seed), task, head="random", max_length=16) for seed in (0, 1))
    name = "embeddings.word_embeddings.weight"
    assert torch.equal(one.parameters()[name].detach(), bert(0).read(name))
    assert torch.equal(other.parameters()[name].detach(), bert(1).read(name))


def test_images_and_finetuned_models(task: Task) -> None:
    examples = even().examples("test").first(5)
    subject = open_subject(vit(), even(), head="random")
    assert_same(fisher(subject, examples, batch_size=2), slow_fisher(subject, examples, "expected"))
    tuned = finetune(bert(), task, task.examples("train"), Finetuning(steps=3, max_length=16, precision="fp32"), seed=1)
    trained = tuned_subject(tuned)
    some = task.examples("test").first(6)
    got = fisher(trained, some, kind="empirical")
    assert_same(got, slow_fisher(trained, some, "empirical"))
    assert read_record(got).head == "trained"
    assert read_record(got).model == content_id(trained.checkpoint) != content_id(bert())


def test_a_finetuned_model_is_measured_as_it_is_saved(task: Task) -> None:
    whole = bert()
    tensors = {name: whole.read(name) for name in whole.names()}
    # In half precision, and with a tensor that the class of the body has no place for.
    base = Memory(
        {n: t.bfloat16() if t.is_floating_point() else t for n, t in tensors.items()} | {"cls.bias": torch.ones(3)},
        files=whole.files,
    )
    settings = Finetuning(steps=2, max_length=16, precision="fp32")
    tuned = finetune(base, task, task.examples("train"), settings, seed=1)
    subject = tuned_subject(tuned)
    saved = body(body_checkpoint(tuned.model.body, base), like=base)
    assert content_id(subject.checkpoint) == content_id(saved) != content_id(base)
    for name, parameter in subject.parameters().items():
        assert torch.equal(parameter.detach(), saved.read(name).float())
    part = mask_of(choice("random:1%"), base, seed=3)
    masked = finetune(base, task, task.examples("train"), settings, seed=1, mask=part)
    assert masked.chosen is not None
    kept = masked_checkpoint(masked.model.body, base, masked.chosen)
    assert content_id(tuned_subject(masked).checkpoint) == content_id(kept)


def test_a_model_with_an_adapter_on_it_is_refused(task: Task) -> None:
    pytest.importorskip("peft")
    settings = Finetuning(steps=1, max_length=16, precision="fp32")
    tuned = finetune(bert(), task, task.examples("train"), settings, seed=1, adapt=Lora(rank=2))
    with pytest.raises(TaskError, match="an adapter on it"):
        tuned_subject(tuned)


def test_a_checkpoints_own_head_is_measured_too(task: Task) -> None:
    checkpoint = headed("AutoModelForSequenceClassification", BERT, num_labels=2)
    subject = open_subject(checkpoint, task, head="own", max_length=16)
    assert {"classifier.weight", "bert.pooler.dense.weight"} <= set(subject.parameters())
    examples = task.examples("test").first(5)
    assert_same(fisher(subject, examples, batch_size=3), slow_fisher(subject, examples, "expected"))


def test_a_language_model_reads_the_texts(task: Task) -> None:
    checkpoint = headed("AutoModelForCausalLM", GPT2, tie_word_embeddings=True)
    subject = open_subject(checkpoint, task, head="own", max_length=16)
    assert set(subject.parameters()) == set(checkpoint.names())
    examples = task.examples("test").first(5)
    (batch,) = subject.batches(examples, 5)
    logits = subject.logits(batch)
    assert logits.shape[:2] == batch.labels.shape == batch.mask.shape  # type: ignore[union-attr]
    ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"]
    assert torch.equal(batch.labels, ids[:, 1:])
    assert batch.mask is not None
    assert batch.mask.sum(1).tolist() == (mask.sum(1) - 1).tolist()
    for kind in ("empirical", "sampled"):
        assert_same(fisher(subject, examples, kind=kind, batch_size=2), slow_fisher(subject, examples, kind))  # type: ignore[arg-type]


def test_a_sequence_to_sequence_model_writes_the_label(task: Task) -> None:
    checkpoint = headed("AutoModelForSeq2SeqLM", T5, tie_word_embeddings=True)
    subject = open_subject(checkpoint, task, head="own", max_length=16)
    examples = task.examples("test").first(5)
    (batch,) = subject.batches(examples, 5)
    assert batch.mask is not None
    assert batch.inputs["decoder_input_ids"][:, 0].eq(0).all()
    assert torch.equal(batch.inputs["decoder_input_ids"][:, 1:], batch.labels[:, :-1])
    names = {tuple(ids[mask].tolist()) for ids, mask in zip(batch.labels, batch.mask, strict=True)}
    assert len(names) == len({int(i) for i in examples.labels})
    got = fisher(subject, examples, kind="empirical", batch_size=2)
    assert_same(got, slow_fisher(subject, examples, "empirical"))


def test_what_does_not_fit_is_said(task: Task, tmp_path: Path) -> None:
    for checkpoint, words in (
        (bert(), "no head that can be read"),
        (headed("AutoModelForSequenceClassification", BERT, num_labels=5), "does not fit the task"),
    ):
        with pytest.raises(TaskError, match=words):
            open_subject(checkpoint, task, head="own")
    whole = headed("AutoModelForSequenceClassification", BERT, num_labels=2)
    less = Memory({n: whole.read(n) for n in whole.names() if not n.startswith("classifier")}, files=whole.files)
    with pytest.raises(TaskError, match="missing"):
        open_subject(less, task, head="own")
    odd = {**whole.config, "architectures": ["os.system"]}
    with pytest.raises(TaskError, match="no head that can be read"):
        open_subject(
            Memory({n: whole.read(n) for n in whole.names()}, files={"config.json": json.dumps(odd).encode()}),
            task,
            head="own",
        )
