"""Gram matrices: against a loop over examples and positions that looks at each layer's inputs one at a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tasks import tiny
from torch import nn
from transformers.pytorch_utils import Conv1D

from cofuse.checkpoint import Memory, content_id, open_local
from cofuse.errors import TaskError
from cofuse.fuse import fuse
from cofuse.measure.statistics.gram import gram
from cofuse.measure.statistics.record import read_record
from cofuse.measure.subject import Subject, module_subject, open_subject
from cofuse.tasks import Examples

from ..test_subject import T5, headed
from .slow_fisher import MODELS


def slow_gram(subject: Subject, examples: Examples) -> dict[str, torch.Tensor]:
    """One example at a time, cut to its own length, so that there is no padding; one position after the other."""
    sums: dict[str, torch.Tensor] = {}
    counts: dict[str, int] = {}
    layers = {n: m for n, m in subject.module.named_modules() if isinstance(m, nn.Linear | Conv1D)}

    def seen(name: str) -> Any:
        def hook(module: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
            there = subject.names.get(f"{name}.weight" if name else "weight")
            for x in given[0].double().reshape(-1, given[0].shape[-1]) if there is not None else ():
                sums[there] = sums.get(there, torch.zeros(())) + torch.outer(x, x)
                counts[there] = counts.get(there, 0) + 1

        return hook

    handles = [module.register_forward_pre_hook(seen(name)) for name, module in layers.items()]
    with torch.no_grad():
        for i in range(len(examples)):
            inputs = {k: torch.from_numpy(np.asarray(v)[i : i + 1]) for k, v in examples.inputs.items()}
            if "attention_mask" in inputs:
                time = int(inputs["attention_mask"].sum())
                written = int((np.asarray(examples.labels)[i] >= 0).sum())
                inputs = {k: v[:, : written if k.startswith("decoder") else time] for k, v in inputs.items()}
            subject.module(**inputs)
    for handle in handles:
        handle.remove()
    return {name: total / counts[name] for name, total in sums.items()}


# Two encoders, one with an encoder before its decoder, decoders with Linear and with Conv1D layers, images, one that flattens.
@pytest.mark.parametrize("name", ["bert", "llama", "gpt2", "t5", "bart", "vit", "opt"])
@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_it_is_the_slow_loops(name: str, batch_size: int) -> None:
    subject, examples = MODELS[name]()
    got, expected = gram(subject, examples, batch_size=batch_size), slow_gram(subject, examples)
    assert set(got.names()) | set(got.aliases) == set(expected)
    turned = 0
    for there, exact in expected.items():
        found = got.read(there).double()
        turned += found.dim() == 3
        torch.testing.assert_close(found.reshape(exact.shape), exact, rtol=1e-5, atol=1e-6)
    assert bool(turned) == (name == "gpt2")


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_texts_and_labels_of_one_length_are_told_apart(name: str) -> None:
    subject, examples = MODELS[name]()
    short = {k: v[:, :5] if k.startswith(("input", "attention")) else v for k, v in examples.inputs.items()}
    examples = Examples(short, examples.labels)
    got, expected = gram(subject, examples), slow_gram(subject, examples)
    for there, exact in expected.items():
        torch.testing.assert_close(got.read(there).double(), exact, rtol=1e-5, atol=1e-6)


def test_padding_after_a_labels_name_does_not_count(tmp_path: Path) -> None:
    task = tiny.opinion_task(tmp_path / "task").model_copy(update={"labels": ("bad", "good good")})
    checkpoint = headed("AutoModelForSeq2SeqLM", T5, tie_word_embeddings=True)
    subject = open_subject(checkpoint, task, head="own", max_length=16)
    examples = task.examples("test").first(6)
    prepared = subject.prepare(examples)
    each = [prepared.collate(np.array([i])) for i in range(6)]
    lengths = [int(batch.mask.sum()) for batch in each if batch.mask is not None]
    # Cut to their own names: then nothing is padding.
    x: list[torch.Tensor] = []
    layer = subject.module.get_submodule("decoder.block.0.layer.0.SelfAttention.q")
    handle = layer.register_forward_pre_hook(lambda module, given: x.append(given[0][0].double()))
    with torch.no_grad():
        for batch, length in zip(each, lengths, strict=True):
            decoded = batch.inputs["decoder_input_ids"][:, :length]
            subject.module(**{**batch.inputs, "decoder_input_ids": decoded})
    handle.remove()
    rows = torch.cat(x)
    assert len(rows) == sum(lengths) < 6 * max(lengths)
    got = gram(subject, examples, batch_size=4).read("decoder.block.0.layer.0.SelfAttention.q.weight")
    torch.testing.assert_close(got.double(), rows.T @ rows / len(rows), rtol=1e-5, atol=1e-6)


def test_padding_does_not_count() -> None:
    subject, examples = MODELS["bert"]()
    other = {
        **examples.inputs,
        "input_ids": np.where(examples.inputs["attention_mask"] > 0, examples.inputs["input_ids"], 7),
    }
    first, second = gram(subject, examples), gram(subject, Examples(other, examples.labels))
    for name in first.names():
        torch.testing.assert_close(first.read(name), second.read(name), rtol=1e-5, atol=1e-6)


def test_shared_weights_have_the_mean_over_all_their_inputs() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
            self.two.weight = self.one.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.two(self.one(x))
            return out

    model = Twice()
    subject = module_subject(
        model, names={"one.weight": "w", "two.weight": "w"}, checkpoint=Memory({"w": model.one.weight.detach()})
    )
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    y = x @ model.one.weight.detach().T
    expected = (x.T @ x + y.T @ y) / 10
    got = gram(subject, Examples({"x": x.numpy()}, np.zeros(5, np.int64)), batch_size=2)
    torch.testing.assert_close(got.read("w"), expected, rtol=1e-5, atol=1e-6)


def test_what_is_not_finite_is_refused_by_name() -> None:
    subject = module_subject(nn.Sequential(nn.Linear(2, 2)))
    bad = Examples({"input": np.array([[1.0, np.inf]], np.float32)}, np.zeros(1, np.int64))
    with pytest.raises(TaskError, match="not finite") as caught:
        gram(subject, bad)
    assert "0.weight" in str(caught.value)
    with pytest.raises(TaskError, match="no examples"):
        gram(subject, Examples({"input": np.zeros((0, 2), np.float32)}, np.zeros(0, np.int64)))


def test_a_body_is_merged_by_them_and_they_say_whose_they_are(tmp_path: Path) -> None:
    base, task = tiny.bert(), tiny.opinion_task(tmp_path / "task")
    subject = open_subject(base, task, head="random", max_length=16)
    some = task.examples("train").first(20)
    made = gram(subject, some, split="train")
    made.save(tmp_path / "gram")
    kept = open_local(tmp_path / "gram")
    record = read_record(kept)
    assert (record.kind, record.model, record.examples, record.task) == ("gram", content_id(base), 20, task.name)
    assert not any("linear" in name for name in kept.names())  # the task's head is none of the model's
    fused = fuse("regmean", [base, base], statistics={"gram": [kept, kept]})
    matrices = [n for n, t in fused.plan.tensors.items() if t.method == "regmean"]
    assert sorted(matrices) == sorted(kept.names())
    assert all(torch.equal(fused.read(name), base.read(name)) for name in base.names())


def test_the_command_line_writes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from cofuse.cli.app import application

    tiny.bert().save(tmp_path / "base")
    tiny.opinion_task(tmp_path / "task")
    monkeypatch.chdir(tmp_path)
    arguments = ["gram", "./base", "--task", "task", "--examples", "12", "-o", "out", "--json"]
    run = CliRunner().invoke(application("gram"), arguments, catch_exceptions=False)
    said = json.loads(run.stdout)
    assert (said["kind"], said["examples"]) == ("gram", 12)
    assert open_local(tmp_path / "out").names()
    assert read_record(open_local(tmp_path / "out")).head == "random"  # on which nothing depends: none is fitted
