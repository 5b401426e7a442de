"""Finetuning: the same seed gives the same bits, and each setting does what it says."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from cofuse.checkpoint import Checkpoint, body, content_id
from cofuse.errors import TaskError
from cofuse.tasks import Task, open_task
from cofuse.tasks import finetune as room
from cofuse.tasks.finetune import Finetuning, Tuned, finetune
from cofuse.tasks.model import body_checkpoint, has_bf16, load_body
from cofuse.tasks.multitask import _Turns, finetune_multitask
from cofuse.tasks.pretrain import Pretraining, pretrain

from .tiny import VIT, bert, even, opinion_task, vit, write_task

FAST: dict[str, Any] = {"steps": 4, "batch_size": 8, "learning_rate": 1e-3, "max_length": 16, "precision": "fp32"}


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    return opinion_task(tmp_path_factory.mktemp("task") / "t")


def tune(task: Task, base: Checkpoint | None = None, *, seed: int = 0, **changes: Any) -> Tuned:
    validation = task.examples("validation") if "patience" in changes else None
    settings = Finetuning(**{**FAST, **changes})
    return finetune(base or bert(), task, task.examples("train"), settings, seed=seed, validation=validation)


def id_after(task: Task, **changes: Any) -> str:
    return content_id(body_checkpoint(tune(task, **changes).model.body, bert()))


def test_the_same_seed_gives_the_same_body_bit_for_bit(task: Task) -> None:
    first = id_after(task)
    assert id_after(task) == first
    assert id_after(task, seed=1) != first
    assert content_id(bert()) != first
    # What another training left in the module that is kept does not matter.
    tune(task, bert(7), seed=3, freeze=("encoder.*",))
    assert id_after(task) == first


def test_random_numbers_of_the_caller_are_left_alone(task: Task) -> None:
    def draws() -> list[float]:
        return [random.random(), float(np.random.rand()), float(torch.rand(()))]

    def seed() -> None:
        random.seed(3)
        np.random.seed(3)
        torch.manual_seed(3)

    seed()
    expected = draws()
    seed()
    tune(task)
    assert draws() == expected


def test_it_learns(task: Task) -> None:
    tuned = tune(task, steps=60, learning_rate=5e-3, dropout=0.0)
    test = task.examples("test")
    assert task.score(tuned.predict(test), test.labels) > 90
    untrained = tune(task, steps=1, learning_rate=1e-9)
    assert task.score(untrained.predict(test), test.labels) < 75


def test_predictions_come_in_the_order_of_the_examples(task: Task) -> None:
    tuned = tune(task)
    test = task.examples("test")
    order = np.random.default_rng(0).permutation(len(test))
    assert tuned.predict(test.take(order)).tolist() == tuned.predict(test)[order].tolist()


@pytest.mark.parametrize("pattern", ["embeddings.*", "encoder.layer.0.*", "*.bias"])
def test_what_is_frozen_stays_bit_for_bit(task: Task, pattern: str) -> None:
    from fnmatch import fnmatchcase

    base = bert()
    trained = body_checkpoint(tune(task, base, freeze=(pattern,)).model.body, base)
    frozen = {n for n in base.names() if fnmatchcase(n, pattern)}
    same = {n for n in base.names() if torch.equal(base.read(n), trained.read(n))}
    assert frozen
    assert same == frozen | {n for n in base.names() if n.startswith("pooler")}  # mean pooling goes past the pooler


def test_freezing_nothing_or_everything_is_refused(task: Task) -> None:
    with pytest.raises(TaskError, match="a pattern freezes nothing") as caught:
        tune(task, freeze=("embeddings.*", "embedings.*"))
    assert caught.value.got == "embedings.*"
    with pytest.raises(TaskError, match="the whole body is frozen"):
        tune(task, freeze=("*",))


def test_the_head_has_a_learning_rate_of_its_own(task: Task) -> None:
    base = bert()
    still = tune(task, base, learning_rate=1e-12, head_learning_rate=0.1, weight_decay=0.0)
    moved = still.model.head.linear.weight.detach().clone()
    torch.testing.assert_close(body_checkpoint(still.model.body, base).read("embeddings.word_embeddings.weight"), base.read("embeddings.word_embeddings.weight"))  # fmt: skip
    start = room.Head(16, 2, 0.0, 0).linear.weight
    assert (moved - start).abs().max() > 0.05
    slow = tune(task, base, learning_rate=1e-12)
    assert (slow.model.head.linear.weight - start).abs().max() < 1e-6


def test_a_head_may_start_from_a_probe(task: Task) -> None:
    test = task.examples("test")
    probed = tune(task, steps=1, learning_rate=1e-12, head="probe")
    random_head = tune(task, steps=1, learning_rate=1e-12)
    assert task.score(probed.predict(test), test.labels) > task.score(random_head.predict(test), test.labels) + 10


def test_early_stopping_keeps_the_best_and_stops(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[float, str]] = []
    score = Task.score
    settings = Finetuning(
        **{**FAST, "steps": 40, "learning_rate": 5e-3, "evaluate_every": 3, "patience": 2, "dropout": 0.0}
    )

    def watched(self: Task, predicted: Any, labels: Any) -> float:
        seen.append((score(self, predicted, labels), np.asarray(predicted).tobytes().hex()))
        return seen[-1][0]

    monkeypatch.setattr(Task, "score", watched)
    validation = task.examples("validation")
    tuned = finetune(bert(), task, task.examples("train"), settings, seed=0, validation=validation)
    monkeypatch.undo()
    scores = [s for s, _ in seen]
    best = max(scores)
    assert tuned.validation == best
    assert tuned.steps < 40
    assert tuned.steps == 3 * len(scores)
    after = scores[scores.index(best) + 1 :]
    assert len(after) == 2  # its patience
    # The model that comes back is the best one, not the last one.
    assert tuned.predict(validation).tobytes().hex() == seen[scores.index(best)][1]


def test_validation_is_asked_for_only_where_it_is_used(task: Task) -> None:
    with pytest.raises(TaskError, match="early stopping needs validation examples"):
        finetune(bert(), task, task.examples("train"), Finetuning(**FAST, patience=1), seed=0)
    assert tune(task).validation is None
    # Evaluated at the end although the first evaluation would come later.
    assert tune(task, patience=1, evaluate_every=100).validation is not None


def test_a_length_is_given_once() -> None:
    for wrong in ({}, {"steps": 1, "epochs": 1.0}, {"steps": 0}, {"epochs": -1.0}, {"steps": 1, "learning_rate": 0.0}):
        with pytest.raises(ValidationError):
            Finetuning(**wrong)
    assert Finetuning(epochs=0.5, batch_size=8).total_steps(64) == 4
    assert Finetuning(epochs=3, batch_size=8).total_steps(5) == 3
    assert Finetuning(steps=7).total_steps(5) == 7


def test_epochs_are_passes_over_the_examples(task: Task) -> None:
    assert tune(task, steps=None, epochs=1.5).steps == 12  # 64 examples in batches of 8


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_regression(pooling: str, tmp_path: Path) -> None:
    texts = [" ".join(["good"] * i + ["bad"] * (5 - i)) for i in range(6)] * 6
    rows = {"train": {"text": texts, "label": [texts[i].count("good") / 5 for i in range(36)]}}
    task = open_task(str(write_task(tmp_path / "r", rows, {"name": "r", "kind": "regression", "metric": "pearson"})))
    train = task.examples("train")
    settings = Finetuning(**{**FAST, "steps": 60, "learning_rate": 5e-3, "dropout": 0.0, "pooling": pooling})
    predicted = finetune(bert(), task, train, settings, seed=0).predict(train)
    assert predicted.shape == (36,)
    assert task.score(predicted, train.labels) > 90


def test_pairs(tmp_path: Path) -> None:
    words = ["good", "bad"]
    firsts, seconds = [words[i % 2] for i in range(48)], [words[i // 2 % 2] for i in range(48)]
    same = [int(a == b) for a, b in zip(firsts, seconds, strict=True)]
    rows = {"train": {"text": firsts, "text_pair": seconds, "label": same}}
    task = open_task(str(write_task(tmp_path / "p", rows, {"name": "p", "labels": ["other", "same"], "pair": True})))
    train = task.examples("train")
    settings = Finetuning(**{**FAST, "steps": 120, "learning_rate": 1e-2, "dropout": 0.0})
    tuned = finetune(bert(), task, train, settings, seed=0)
    assert task.score(tuned.predict(train), train.labels) > 90


def test_images() -> None:
    settings = Finetuning(steps=80, batch_size=32, learning_rate=3e-3, precision="fp32")
    task, base = even(), vit()
    ids = set()
    for _ in range(2):
        tuned = finetune(base, task, task.examples("train"), settings, seed=1)
        ids.add(content_id(body(body_checkpoint(tuned.model.body, base), like=base)))
    assert len(ids) == 1
    test = task.examples("test")
    assert task.score(tuned.predict(test), test.labels) > 80


def test_bfloat16_where_the_processor_has_it(task: Task) -> None:
    asked = id_after(task, precision="bf16")
    assert asked != id_after(task, precision="fp32")
    assert id_after(task, precision="auto") == (asked if has_bf16() else id_after(task, precision="fp32"))
    tuned = tune(task, precision="bf16", steps=40, learning_rate=5e-3)
    assert all(p.dtype == torch.float32 for p in tuned.model.parameters())  # what is kept is not rounded


@pytest.mark.parametrize("rate", [1e30, 1e38])
def test_divergence_is_told(task: Task, rate: float) -> None:
    with pytest.raises(TaskError, match="training diverged") as caught:
        tune(task, learning_rate=rate, warmup=0, schedule="constant")
    assert caught.value.hint == "lower the learning rate"
    assert id_after(task) == id_after(task)  # the module that is kept is whole again


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU here")
@pytest.mark.parametrize("rate", [1e-3, 1e30])
def test_what_was_trained_on_a_gpu_comes_back_from_it(task: Task, rate: float) -> None:
    base = bert()
    with contextlib.suppress(TaskError):
        tune(task, base, learning_rate=rate, warmup=0)
    assert {t.device.type for t in load_body(base).state_dict().values()} == {"cpu"}  # the module that is kept


# Several tasks at once


def test_every_task_has_its_turn(task: Task) -> None:
    sizes = [64, 5, 17]
    encoded = [task.what.encode(task.examples("train").first(n), bert(), 16) for n in sizes]
    turns = _Turns([room.Collator(task.what)] * 3, encoded, 8, steps=30, seed=0)
    order = [turns[i]["task"] for i in range(len(turns))]
    assert all(sorted(order[i : i + 3]) == [0, 1, 2] for i in range(0, 30, 3))
    assert len({tuple(order[i : i + 3]) for i in range(0, 30, 3)}) > 1
    rows = [[row for t, taken in turns._batches if t == which for row in taken.tolist()] for which in range(3)]
    for n, taken in zip(sizes, rows, strict=True):  # every example once before any comes again
        assert all(sorted(taken[i : i + n]) == list(range(n)) for i in range(0, len(taken) - n + 1, n))


def test_multitask_takes_the_batches_in_turn_and_is_deterministic(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    other = task.model_copy(update={"name": "other"})
    train = task.examples("train")
    settings = Finetuning(**{**FAST, "steps": 8})
    seen: list[int] = []
    take = _Turns.__getitem__

    def watched(self: _Turns, i: int) -> dict[str, Any]:
        seen.append(i)
        return take(self, i)

    monkeypatch.setattr(_Turns, "__getitem__", watched)

    def trained(seed: int) -> str:
        flipped = train.__class__(train.inputs, 1 - train.labels)
        module = finetune_multitask(bert(), [(task, train), (other, flipped)], settings, seed=seed)
        return content_id(body_checkpoint(module, bert()))

    first = trained(0)
    assert seen == list(range(8))
    assert trained(0) == first != trained(1)


def test_multitask_of_different_kinds(task: Task, tmp_path: Path) -> None:
    rows = {"train": {"text": ["good", "bad"] * 8, "label": [1.0, 0.0] * 8}}
    rated = open_task(str(write_task(tmp_path / "r", rows, {"name": "r", "kind": "regression"})))
    parts = [(task, task.examples("train")), (rated, rated.examples("train"))]
    module = finetune_multitask(bert(), parts, Finetuning(**{**FAST, "freeze": ("embeddings.*",)}), seed=0)
    trained, base = body_checkpoint(module, bert()), bert()
    changed = {n for n in base.names() if not torch.equal(base.read(n), trained.read(n))}
    assert changed == {n for n in base.names() if n.startswith("encoder.")}


# From nothing


def test_pretraining_is_deterministic_and_learns() -> None:
    settings = Pretraining.model_validate(
        {"model": VIT, "data": {"source": "digits"}, "steps": 30, "learning_rate": 3e-3}
    )
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    first = pretrain(settings)
    assert torch.equal(torch.rand(2), expected)
    assert content_id(first) == content_id(pretrain(settings))
    assert content_id(first) != content_id(pretrain(settings.model_copy(update={"seed": 1})))
    assert not any("mask_token" in n or "pooler" in n for n in first.names())
    assert first.config["model_type"] == "vit"
    tuned = finetune(first, even(), even().examples("train").first(16), Finetuning(steps=1, precision="fp32"), seed=0)
    assert set(body(body_checkpoint(tuned.model.body, first), like=first).names()) == set(first.names())


def test_pretraining_masks_at_least_one_patch_and_refuses_what_it_cannot_use() -> None:
    digits = {"source": "digits"}
    few = Pretraining.model_validate({"model": VIT, "data": digits, "steps": 2, "mask": 0.01})
    assert all(torch.isfinite(pretrain(few).read(n)).all() for n in pretrain(few).names())
    with pytest.raises(TaskError, match="arrays of images"):
        pretrain(Pretraining.model_validate({"model": {**VIT, "num_channels": 3}, "data": digits, "steps": 1}))
    with pytest.raises(TaskError, match="cannot build the model"):
        pretrain(Pretraining.model_validate({"model": {"model_type": "vti"}, "data": digits, "steps": 1}))
    with pytest.raises(TaskError, match="diverged"):
        pretrain(
            Pretraining.model_validate({"model": VIT, "data": digits, "steps": 4, "learning_rate": 1e30, "warmup": 0})
        )
