"""LoRA and IA3: the adapter alone trains, and its checkpoint predicts what the trained module predicts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cofuse.checkpoint import Checkpoint, Memory, content_id
from cofuse.checkpoint.adapter import Adapter
from cofuse.errors import TaskError
from cofuse.patch import Patch, apply, make
from cofuse.patch.adapters import FromAdapter
from cofuse.tasks import Examples, Task
from cofuse.tasks.finetune import Finetuning, Tuned, finetune
from cofuse.tasks.heads import HEAD, head_bytes, open_tuned
from cofuse.tasks.model import body_checkpoint, forward_all
from cofuse.tasks.peft import Adapting, Ia3, Lora

from .tiny import bert, even, opinion_task, vit

FAST: dict[str, Any] = {"steps": 8, "batch_size": 8, "learning_rate": 2e-2, "max_length": 16, "precision": "fp32"}
EVEN = Ia3(targets=("k_proj", "v_proj", "key", "value"))


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    return opinion_task(tmp_path_factory.mktemp("task") / "t")


def tune(task: Task, base: Checkpoint, adapt: Adapting | None, seed: int = 0) -> Tuned:
    return finetune(base, task, task.examples("train").first(64), Finetuning(**FAST), seed=seed, adapt=adapt)


def saved(tuned: Tuned, folder: Path, base: Checkpoint) -> Adapter:
    assert tuned.adapted is not None
    folder.mkdir()
    tuned.adapted.save(folder)
    return Adapter(folder, base)


def held(checkpoint: Checkpoint) -> Memory:
    return Memory({n: checkpoint.read(n) for n in checkpoint.names()}, files=dict(checkpoint.files))


def outputs(tuned: Tuned, examples: Examples) -> Any:
    tuned.model.eval()
    encoded = tuned.task.what.encode(examples, tuned.like, 16)
    return forward_all(lambda batch: tuned.model(**batch)["logits"], tuned.task.what, encoded, "fp32")


@pytest.mark.parametrize("adapt", [Lora(rank=2), Lora(rank=3, alpha=12, targets=("query", "dense")), Ia3()], ids=str)
def test_its_checkpoint_predicts_what_the_module_does(adapt: Adapting, task: Task, tmp_path: Path) -> None:
    base, test = bert(), task.examples("test")
    tuned = tune(task, base, adapt)
    there = outputs(tuned, test)
    adapter = saved(tuned, tmp_path / "adapter", base)
    assert content_id(adapter) != content_id(base)
    (tmp_path / HEAD).write_bytes(head_bytes(tuned))
    merged, without = (outputs(open_tuned(c, tmp_path, task), test) for c in (held(adapter), base))
    assert np.abs(there - merged).max() < 0.01 * np.abs(there - without).max()


def test_nothing_but_the_adapter_and_the_head_trains(task: Task) -> None:
    base = bert()
    tuned = tune(task, base, Lora(rank=2))
    before = {n.replace(".base_layer", ""): p for n, p in tuned.model.body.named_parameters() if not p.requires_grad}
    for name in base.names():
        assert torch.equal(before[name], base.read(name))
    trained = [n for n, p in tuned.model.body.named_parameters() if p.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)
    assert sum(p.numel() for p in tuned.model.body.parameters() if p.requires_grad) == 2 * 2 * 2 * 2 * 16


def test_the_module_that_is_kept_has_no_adapter_in_it(task: Task) -> None:
    base = bert()
    first = content_id(body_checkpoint(tune(task, base, None).model.body, base))
    tune(task, base, Lora(rank=2))
    assert content_id(body_checkpoint(tune(task, base, None).model.body, base)) == first


def test_the_seed_decides_the_adapter(task: Task) -> None:
    def tensors(seed: int) -> dict[str, Any]:
        adapted = tune(task, bert(), Lora(rank=2), seed).adapted
        assert adapted is not None
        return {name: tensor.clone() for name, tensor in adapted.tensors().items()}

    one, again, two = tensors(1), tensors(1), tensors(2)
    assert all(torch.equal(one[n], again[n]) for n in one)
    assert not any(torch.equal(one[n], two[n]) for n in one)


def test_a_lora_becomes_a_patch_of_its_factors(task: Task, tmp_path: Path) -> None:
    base = bert()
    adapter = saved(tune(task, base, Lora(rank=2)), tmp_path / "adapter", base)
    patch = make(base, adapter, tmp_path / "x.patch", FromAdapter(adapter))
    assert {c.how for c in patch.manifest.tensors.values()} == {"product"}
    applied = apply(base, Patch.load(patch.path))
    for name in base.names():
        torch.testing.assert_close(applied.read(name), adapter.read(name), rtol=1e-5, atol=1e-7)


def test_a_model_whose_tensors_have_other_names_on_disk(tmp_path: Path) -> None:
    base, task = vit(), even()
    tuned = tune(task, base, EVEN)
    adapter = saved(tuned, tmp_path / "adapter", base)
    test = task.examples("test").first(50)
    there = outputs(tuned, test)
    (tmp_path / HEAD).write_bytes(head_bytes(tuned))
    merged, without = (outputs(open_tuned(c, tmp_path, task), test) for c in (held(adapter), base))
    assert np.abs(there - merged).max() < 0.01 * np.abs(there - without).max()


def test_modules_that_are_not_there_are_refused(task: Task) -> None:
    with pytest.raises(TaskError, match="cannot adapt"):
        tune(task, bert(), Lora(targets=("nowhere",)))


def test_a_head_of_another_task_or_body_is_refused(task: Task, tmp_path: Path) -> None:
    tuned = tune(task, bert(), None)
    (tmp_path / HEAD).write_bytes(head_bytes(tuned))
    with pytest.raises(TaskError, match="another task"):
        open_tuned(bert(), tmp_path, task.model_copy(update={"labels": ("a", "b", "c")}))
    with pytest.raises(TaskError, match="does not fit the body"):
        open_tuned(bert(hidden_size=32), tmp_path, task)
    Memory({"weight": torch.zeros(1)}).save(tmp_path / "other")
    with pytest.raises(TaskError, match="not a head"):
        open_tuned(bert(), tmp_path / "other" / "model.safetensors", task)
