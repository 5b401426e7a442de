"""Finetuning as one thing: what a mask is measured under, whose work is taken up, what is written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tasks.tiny import bert, opinion_task, write_task

from cofuse.checkpoint import Memory, content_id
from cofuse.errors import CheckpointError, PatchError, TaskError
from cofuse.measure.finetuning.tuning import check_places, measured_fisher, tune
from cofuse.measure.finetuning.work import discard
from cofuse.measure.subject import open_subject
from cofuse.tasks import Examples, Task, open_task
from cofuse.tasks.finetune import Finetuning, finetune
from cofuse.tasks.heads import HEAD, open_tuned
from cofuse.tasks.peft import Lora

FAST: dict[str, Any] = {"steps": 4, "batch_size": 8, "learning_rate": 1e-2, "max_length": 16, "precision": "fp32"}
SETTINGS = Finetuning(**FAST)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    return opinion_task(tmp_path_factory.mktemp("task") / "t")


def listed(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_fisher_under_a_probe_sees_no_more_than_the_training_does(task: Task, tmp_path: Path) -> None:
    some = task.examples("train").first(12)
    settings = Finetuning(**{**FAST, "head": "probe"})
    rows = {"train": {"text": some.inputs["text"], "label": some.labels.tolist()}}
    small = open_task(str(write_task(tmp_path / "t", rows, {"name": "opinions", "labels": ["bad", "good"]})))
    got, other = (measured_fisher(bert(), t, some, settings, seed=0) for t in (task, small))
    for name in got.names():
        assert torch.equal(got.read(name), other.read(name))
    # Its head is where the training starts.
    still = finetune(bert(), task, some, Finetuning(**{**FAST, "head": "probe", "learning_rate": 1e-30}), seed=0)
    subject = open_subject(bert(), task, max_length=16, probe_on=some)
    assert torch.equal(subject.module.get_parameter("head.linear.weight"), still.model.head.linear.weight)


def test_work_is_taken_up_where_all_is_the_same_and_only_there(task: Task, tmp_path: Path) -> None:
    """After a training in a folder, another in it ends where it ends without one."""
    train = task.examples("train")
    swapped = Examples({"text": train.inputs["text"][::-1]}, train.labels)
    same: dict[str, Any] = {"part": Lora(rank=2, alpha=8), "examples": train}
    others: list[dict[str, Any]] = [
        {**same, "part": Lora(rank=2, alpha=1)},
        {**same, "part": Lora(rank=2, alpha=8, targets=("query",))},
        {**same, "examples": swapped},
        same,
        same,
    ]
    tune(bert(), task, SETTINGS, **same, folder=tmp_path / "w")
    ids, records = [], []
    for wanted in others:
        found = tune(bert(), task, SETTINGS, **wanted, folder=tmp_path / "w")
        ids.append(content_id(found.checkpoint))
        records.append({k: v for k, v in found.record.items() if k not in ("score", "trained")})
        assert ids[-1] == content_id(tune(bert(), task, SETTINGS, **wanted).checkpoint)
    assert len(set(ids)) == 4
    assert records[3] == records[4]
    assert all(r != records[3] for r in records[:3])


@pytest.mark.parametrize("file", ["notes.txt", "work.json", "trainer/checkpoint-1/trainer_state.json"])
def test_a_folder_of_somebody_elses_is_refused_and_stays(file: str, task: Task, tmp_path: Path) -> None:
    kept = tmp_path / "w" / file
    kept.parent.mkdir(parents=True)
    kept.write_text('{"mine": 1}', encoding="utf-8")
    before = listed(tmp_path)
    with pytest.raises(TaskError, match="holds other things"):
        tune(bert(), task, SETTINGS, folder=tmp_path / "w")
    discard(tmp_path / "w")
    assert listed(tmp_path) == before


def test_what_somebody_put_beside_the_work_stays(task: Task, tmp_path: Path) -> None:
    folder = tmp_path / "w"
    folder.mkdir()  # an empty one will do
    tune(bert(), task, SETTINGS, folder=folder)
    (folder / "notes.txt").write_text("mine", encoding="utf-8")
    discard(folder)
    assert listed(folder) == {"notes.txt": b"mine"}
    discard(tmp_path / "nothing")


def test_neither_a_head_nor_weights_stand_alone(task: Task, tmp_path: Path) -> None:
    found = tune(bert(), task, SETTINGS)
    broken = {n: found.checkpoint.read(n).clone() for n in found.checkpoint.names()}
    broken["embeddings.word_embeddings.weight"][3, 2] = torch.nan
    bad = replace(found, checkpoint=Memory(broken, files=dict(found.checkpoint.files)))
    with pytest.raises(PatchError, match="not finite"):
        bad.save_patch(tmp_path / "x.patch")
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"")
    before = sorted(tmp_path.rglob("*"))
    for head in (tmp_path / "folder", tmp_path / "file" / "h", tmp_path / "m" / "h.safetensors", tmp_path / "m"):
        with pytest.raises(CheckpointError):
            found.save(tmp_path / "m", head=head)
        with pytest.raises(CheckpointError):
            check_places(tmp_path / "m", head, patch=False)
    with pytest.raises(CheckpointError):
        found.save_patch(tmp_path / "m.patch", head=tmp_path / "folder")
    assert sorted(tmp_path.rglob("*")) == before


def test_the_score_is_in_the_precision_of_the_training(tmp_path: Path) -> None:
    texts = [" ".join(["good"] * i + ["bad"] * (5 - i)) for i in range(6)] * 4
    rows = {s: {"text": texts, "label": [float(t.count("good")) for t in texts]} for s in ("train", "validation")}
    task = open_task(str(write_task(tmp_path / "r", rows, {"name": "r", "kind": "regression", "metric": "pearson"})))
    validation = task.examples("validation")
    for precision in ("fp32", "bf16"):
        found = tune(bert(), task, Finetuning(**{**FAST, "precision": precision}))
        (tmp_path / HEAD).write_bytes(found.head)
        scores = {
            p: task.score(
                open_tuned(found.checkpoint, tmp_path, task, precision=p).predict(validation), validation.labels
            )
            for p in ("fp32", "bf16")
        }
        assert scores["fp32"] != scores["bf16"]
        assert np.isclose(found.score, scores[precision], rtol=1e-12)
