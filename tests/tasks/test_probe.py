"""Probing: features in the order of the examples, and heads that are one thing as scikit-learn's and as ours."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge

from cofuse.tasks import Examples, Task
from cofuse.tasks.model import Head, load_body
from cofuse.tasks.probe import Probe, Probing, features, fit_head

from .tiny import bert, even, opinion_task, vit

PLAIN = Probing(precision="fp32", max_length=16)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    return opinion_task(tmp_path_factory.mktemp("task") / "t")


def many(classes: int) -> Task:
    labels = tuple(f"l{i}" for i in range(classes))
    return even().model_copy(update={"labels": labels})


def rated() -> Task:
    return even().model_copy(update={"kind": "regression", "labels": ()})


def cloud(classes: int, count: int = 60, seed: int = 0) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    random = np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.int64) % classes
    vectors = random.normal(size=(count, 7)) * 3 + random.normal(size=(classes, 7))[labels] * 4 + 5
    return vectors.astype(np.float32), labels


def test_features_come_in_the_order_of_the_examples(task: Task) -> None:
    test = task.examples("test")
    together = features(bert(), task, test, PLAIN)
    assert together.shape == (48, 16)
    assert together.dtype == np.float32
    order = np.random.default_rng(0).permutation(len(test))
    np.testing.assert_allclose(features(bert(), task, test.take(order), PLAIN), together[order], atol=1e-5)
    np.testing.assert_allclose(features(bert(), task, test, PLAIN, batch_size=5), together, atol=1e-5)
    alone = np.concatenate([features(bert(), task, test.take(np.array([i])), PLAIN) for i in range(5)])
    np.testing.assert_allclose(alone, together[:5], atol=1e-5)
    assert np.array_equal(together, features(bert(), task, test, PLAIN))
    assert features(vit(), even(), even().examples("test").first(3), PLAIN).shape == (3, 16)


@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("classes", [2, 3, 5])
def test_a_probe_is_scikit_learns_and_one_linear_layer(classes: int, standardize: bool) -> None:
    vectors, labels = cloud(classes)
    probe = Probe(many(classes), vectors, labels, PLAIN.model_copy(update={"standardize": standardize, "c": 0.1}))
    unseen, _ = cloud(classes, 200, seed=1)
    mean, deviation = (vectors.mean(0), vectors.std(0)) if standardize else (0.0, 1.0)
    theirs = LogisticRegression(C=0.1, max_iter=1000).fit((vectors - mean) / deviation, labels)
    assert probe.predict(unseen).tolist() == theirs.predict((unseen - mean) / deviation).tolist()
    weight, bias = probe.linear(classes)
    assert weight.shape == (classes, 7)
    logits = unseen @ weight.T + bias
    assert logits.argmax(1).tolist() == probe.predict(unseen).tolist()
    expected = theirs.predict_proba((unseen - mean) / deviation)
    np.testing.assert_allclose(torch.from_numpy(logits).softmax(1).numpy(), expected, atol=1e-6)


@pytest.mark.parametrize(("seen", "classes"), [([0, 2], 3), ([1, 3, 4], 6), ([1], 2), ([2], 4)])
@pytest.mark.parametrize("standardize", [False, True])
def test_classes_that_were_never_seen_are_never_said(seen: list[int], classes: int, standardize: bool) -> None:
    vectors, numbers = cloud(len(seen))
    labels = np.array(seen)[numbers]
    probe = Probe(many(classes), vectors, labels, PLAIN.model_copy(update={"standardize": standardize}))
    unseen, _ = cloud(len(seen), 200, seed=1)
    predicted = probe.predict(unseen)
    assert set(predicted.tolist()) <= set(seen)
    weight, bias = probe.linear(classes)
    assert (weight.shape, bias.shape) == ((classes, 7), (classes,))
    assert (unseen @ weight.T + bias).argmax(1).tolist() == predicted.tolist()


def test_regression_is_ridge() -> None:
    vectors, _ = cloud(2)
    values = (vectors @ np.arange(7) + 3).astype(np.float32)
    probe = Probe(rated(), vectors, values, PLAIN.model_copy(update={"c": 0.5}))
    expected = Ridge(alpha=2.0).fit(vectors, values).predict(vectors)
    np.testing.assert_allclose(probe.predict(vectors), expected, rtol=1e-5)
    weight, bias = probe.linear(1)
    np.testing.assert_allclose((vectors @ weight.T + bias)[:, 0], expected, rtol=1e-4)


def test_a_constant_feature_does_no_harm() -> None:
    vectors, labels = cloud(2)
    vectors[:, 3] = 4.0
    vectors[::2, 4] = np.nextafter(vectors[0, 4], 9, dtype=np.float32)
    vectors[1::2, 4] = vectors[0, 4]  # constant but for rounding
    probe = Probe(many(2), vectors, labels, PLAIN.model_copy(update={"standardize": True}))
    assert np.isfinite(probe.linear(2)[0]).all()
    assert (probe.predict(vectors) == labels).mean() > 0.8
    moved = vectors.copy()
    moved[:, 3:5] += 1  # on a body that has changed
    assert probe.predict(moved).tolist() == probe.predict(vectors).tolist()


@pytest.mark.parametrize("labels", [[0, 1], [1], [0]])
def test_a_head_fitted_to_a_body_says_what_its_probe_says(task: Task, labels: list[int]) -> None:
    train = task.examples("train")
    some: Examples = train.take(np.flatnonzero(np.isin(train.labels, labels)))
    body = load_body(bert())
    head = Head(16, 2, 0.0, 0)
    before = head.linear.weight.detach().clone()
    fit_head(head, body, task, task.what.encode(some, bert(), 16), "mean", "fp32")
    if len(labels) == 1:  # nothing to learn from: the head stays as it was
        assert torch.equal(head.linear.weight, before)
        return
    vectors = features(bert(), task, some, PLAIN)
    probe: Any = Probe(task, vectors, some.labels, Probing(standardize=True, c=0.02))
    said = head(torch.from_numpy(vectors)).argmax(1).tolist()
    assert said == probe.predict(vectors).tolist()
