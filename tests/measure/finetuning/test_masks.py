"""Masks of a base before it is trained: as many values as asked for, and the right ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tasks.tiny import bert, opinion_task, vit

from cofuse.checkpoint import Checkpoint, Memory
from cofuse.errors import PatchError, TaskError
from cofuse.measure.finetuning.masks import mask_of, trainable
from cofuse.measure.finetuning.tuning import measured_fisher, tune
from cofuse.patch.choice import choice
from cofuse.patch.masks import places
from cofuse.tasks import Task
from cofuse.tasks.finetune import Finetuning

SETTINGS = Finetuning(steps=4, batch_size=8, learning_rate=1e-2, max_length=16, precision="fp32")


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    return opinion_task(tmp_path_factory.mktemp("task") / "t")


@pytest.fixture(scope="module")
def fisher(task: Task) -> Checkpoint:
    return measured_fisher(bert(), task, task.examples("train"), SETTINGS, seed=0)


@pytest.mark.parametrize("kind", ["fish", "magnitude", "random"])
@pytest.mark.parametrize("share", [0.0005, 0.02, 0.1, 1.0])
def test_a_share_is_met_exactly(kind: str, share: float, fisher: Checkpoint) -> None:
    base = bert()
    total = sum(spec.numel for spec in trainable(base).values())
    mask = mask_of(choice(f"{kind}:{100 * share:g}%"), base, fisher=lambda: fisher)
    assert sum(len(places(mask, name)) for name in mask.specs) == round(share * total)


def test_fish_takes_the_largest_of_the_fisher_and_magnitude_of_the_model(fisher: Checkpoint) -> None:
    base = bert()
    statistics = {name: fisher.read(name) for name in trainable(base) if name in fisher}
    for word, values in (("fish:2%", statistics), ("magnitude:2%", {n: base.read(n).abs() for n in trainable(base)})):
        mask = mask_of(choice(word), base, fisher=lambda: fisher)
        inside, outside = [], []
        for name, value in values.items():
            kept = torch.zeros(value.numel(), dtype=torch.bool)
            kept[places(mask, name)] = True
            inside.append(value.flatten()[kept])
            outside.append(value.flatten()[~kept])
        assert torch.cat(inside).min() >= torch.cat(outside).max()


def test_each_tensor_may_have_a_share_of_its_own(fisher: Checkpoint) -> None:
    chosen = choice("fish:10%").whole(None, per_tensor=True, where="here")
    mask = mask_of(chosen, bert(), fisher=lambda: fisher)
    for name, spec in mask.specs.items():
        assert len(places(mask, name)) == round(0.1 * spec.numel)


def test_words_that_take_whole_tensors() -> None:
    base = bert()
    for word, fits in (("bias", ".bias"), ("names:*query.weight", "query.weight")):
        mask = mask_of(choice(word), base)
        for name, spec in mask.specs.items():
            assert len(places(mask, name)) == (spec.numel if name.endswith(fits) else 0)


def test_a_random_mask_follows_its_seed_else_that_of_the_training() -> None:
    base, name = bert(), "embeddings.word_embeddings.weight"
    of = {
        (word, seed): places(mask_of(choice(word), base, seed=seed), name).tolist()
        for word in ("random:10%", "random:10%:1")
        for seed in (1, 2)
    }
    assert of["random:10%", 1] == of["random:10%:1", 1] == of["random:10%:1", 2] != of["random:10%", 2]


def test_the_names_are_those_of_the_checkpoint(fisher: Checkpoint) -> None:
    base = vit()  # transformers calls its tensors otherwise in memory
    assert set(trainable(base)) <= set(base.names())
    assert sum(s.numel for s in trainable(base).values()) > 0.9 * sum(base.spec(n).numel for n in base.names())


def test_what_cannot_be_a_mask_is_refused(task: Task, fisher: Checkpoint) -> None:
    with pytest.raises(PatchError, match="needs one"):
        mask_of(choice("fish:1%"), bert())
    with pytest.raises(PatchError, match="how many values"):
        mask_of(choice("random:1"), bert())
    with pytest.raises(PatchError, match="no tensor of this model"):
        mask_of(choice("fish:1%"), bert(), fisher=lambda: Memory({"x": torch.ones(1)}))
    with pytest.raises(TaskError, match="another model"):
        tune(bert(seed=1), task, SETTINGS, choice("fish:1%"), statistics=fisher)


def test_a_fisher_of_ones_own_makes_the_same_mask_as_the_measured_one(
    task: Task, fisher: Checkpoint, tmp_path: Path
) -> None:
    base, part = bert(), choice("fish:2%")
    measured = tune(base, task, SETTINGS, part)
    given = tune(base, task, SETTINGS, part, statistics=fisher)
    for name in base.names():
        assert torch.equal(measured.checkpoint.read(name), given.checkpoint.read(name))
    assert measured.trained == round(0.02 * measured.reachable)
