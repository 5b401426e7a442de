"""Protocols on the bundled digits: the same draws for every model, and each measures what its name says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from tasks.tiny import even, vit

from cofuse.checkpoint import Memory
from cofuse.errors import TaskError
from cofuse.measure.evaluation import protocols
from cofuse.measure.evaluation.protocols import PROTOCOLS, Evaluation, Measured, Protocol, measure
from cofuse.tasks import Task, draw_rows
from cofuse.tasks.finetune import Finetuning, Tuned, finetune
from cofuse.tasks.probe import Probe, Probing, features

SHORT = {"steps": 3, "batch_size": 16, "learning_rate": 1e-3, "precision": "fp32"}
SETTINGS: dict[str, dict[str, Any]] = {
    "finetune": {"examples": 30, "draws": 2, "test": 50, "finetuning": SHORT},
    "fewshot": {"examples": 10, "draws": 2, "test": 50, "finetuning": SHORT},
    "probe": {"examples": 30, "draws": 3, "test": 50, "probing": {"precision": "fp32"}},
    "oldhead": {"examples": 30, "draws": 3, "test": 50, "probing": {"precision": "fp32"}},
}

every_protocol = pytest.mark.parametrize("name", PROTOCOLS)


def run(name: str, body: Memory, *, old: Memory | None = None, seed: int = 0, **changes: Any) -> Measured:
    settings = PROTOCOLS[name][0].model_validate({**SETTINGS[name], **changes})
    return measure(body, even(), name, settings, seed=seed, old=old)


@every_protocol
def test_a_measurement_can_be_repeated(name: str) -> None:
    first = run(name, vit(), old=vit(1))
    run(name, vit(2), old=vit(1))  # what was measured in between does not matter
    assert run(name, vit(), old=vit(1)) == first
    assert (len(first.values), first.tested) == (SETTINGS[name]["draws"], 50)
    assert all(0 <= v <= 100 for v in first.values)
    assert len({run(name, vit(), old=vit(), seed=s).values for s in range(4)}) > 1


@every_protocol
def test_every_model_is_measured_on_the_same_examples(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[int]] = []

    def watched(*arguments: Any) -> Any:
        rows = draw_rows(*arguments)
        seen.append(rows.tolist())
        return rows

    monkeypatch.setattr(protocols, "draw_rows", watched)
    monkeypatch.setattr(protocols, "draw", lambda examples, *rest: examples.take(watched(examples, *rest)))
    run(name, vit(), old=vit(1))
    first = [*seen]
    seen.clear()
    run(name, vit(3), old=vit(1))
    assert seen == first
    assert len({tuple(rows) for rows in first}) == SETTINGS[name]["draws"]
    assert all(len(rows) == SETTINGS[name]["examples"] for rows in first)
    # A study with more draws repeats those of one with fewer.
    seen.clear()
    run(name, vit(), old=vit(1), draws=1)
    assert seen == first[:1]


def test_a_probe_is_a_probe() -> None:
    task, settings = even(), Probing(precision="fp32")
    train, test = task.examples("train"), task.examples("test").first(50)
    expected = []
    for d in range(3):
        some = train.take(draw_rows(train, 30, [protocols.DRAWS, 0, d]))
        head = Probe(task, features(vit(), task, some, settings), some.labels, settings)
        expected.append(task.score(head.predict(features(vit(), task, test, settings)), test.labels))
    assert run("probe", vit()).values == tuple(expected)


def test_finetuning_is_finetuning() -> None:
    task, settings = even(), Finetuning(**SHORT)
    train, test = task.examples("train"), task.examples("test").first(50)
    expected = []
    for d in range(2):
        some = train.take(draw_rows(train, 30, [protocols.DRAWS, 4, d]))
        tuned = finetune(vit(), task, some, settings, seed=4000 + d)
        expected.append(task.score(tuned.predict(test), test.labels))
    assert run("finetune", vit(), seed=4).values == tuple(expected)


def test_an_old_head_on_its_own_body_is_a_probe() -> None:
    assert run("oldhead", vit(), old=vit()) == run("probe", vit())


def test_an_old_head_is_fitted_on_the_old_body() -> None:
    old, probed = vit(1), run("probe", vit(1)).values
    # Features that are the old ones turned around: what was learnt on the old body is wrong on the new one.
    turned = Memory(
        {n: -old.read(n) if n.startswith("layernorm") else old.read(n) for n in old.names()}, files=old.files
    )
    assert run("probe", turned).values == pytest.approx(probed)
    assert np.mean(run("oldhead", turned, old=old).values) < 100 - np.mean(probed) + 15
    with pytest.raises(TaskError, match="old heads need the old body"):
        run("oldhead", vit())


def test_all_examples_where_no_number_is_given() -> None:
    found = run("probe", vit(), examples=None, test=None, draws=2)
    assert found.tested == len(even().examples("test"))
    assert found.values[0] == found.values[1]  # all of them are always the same


def test_validation_examples_are_for_early_stopping_only(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    examples = Task.examples

    def watched(self: Task, split: Any) -> Any:
        asked.append(split)
        return examples(self, split)

    monkeypatch.setattr(Task, "examples", watched)
    run("finetune", vit())
    assert set(asked) == {"train", "test"}
    run("finetune", vit(), finetuning={**SHORT, "patience": 1, "evaluate_every": 1})
    assert set(asked) == {"train", "validation", "test"}


def test_training_never_sees_the_test_split(monkeypatch: pytest.MonkeyPatch) -> None:
    test = {image.tobytes() for image in even().examples("test").inputs["image"]}
    trained: list[bool] = []

    def watched(body: Any, task: Task, sample: Any, *rest: Any, **options: Any) -> Tuned:
        trained.append(any(image.tobytes() in test for image in sample.inputs["image"]))
        return finetune(body, task, sample, *rest, **options)

    monkeypatch.setattr(protocols, "finetune", watched)
    run("finetune", vit(), examples=None)
    assert trained == [False, False]


@pytest.mark.parametrize(
    ("every", "last", "measured"),
    [
        (0, 5, [5]),
        (1, 5, [0, 1, 2, 3, 4, 5]),
        (2, 5, [0, 2, 4, 5]),
        (3, 9, [0, 3, 6, 9]),
        (7, 5, [0, 5]),
        (1, 1, [0, 1]),
        (0, 0, [0]),
    ],
)
def test_rounds_are_measured_when_due(every: int, last: int, measured: list[int]) -> None:
    # Round 0 is the base; a study asks only for later ones.
    assert [r for r in range(last + 1) if Protocol(every=every).due(r, last)] == measured


def test_an_evaluation_names_its_protocols() -> None:
    chosen = Evaluation.model_validate({"probe": {}, "fewshot": {"finetuning": SHORT}}).chosen()
    assert list(chosen) == ["probe", "fewshot"]
    assert (chosen["fewshot"].examples, chosen["fewshot"].draws) == (100, 3)
    assert Evaluation().chosen() == {}
    assert set(Evaluation.model_fields) == set(PROTOCOLS)
    for wrong in ({"porbe": {}}, {"finetune": {}}, {"probe": {"draws": 0}}, {"probe": {"every": -1}}):
        with pytest.raises(ValidationError):
            Evaluation.model_validate(wrong)
