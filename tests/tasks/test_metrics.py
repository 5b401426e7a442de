"""Metrics against scikit-learn and SciPy; drawing examples."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st

from cofuse.tasks import METRICS, Examples, draw, draw_rows

THEIRS = {
    "accuracy": sklearn.metrics.accuracy_score,
    "macro_f1": lambda y, p: sklearn.metrics.f1_score(y, p, average="macro", zero_division=0.0),
    "matthews": sklearn.metrics.matthews_corrcoef,
    "pearson": lambda y, p: scipy.stats.pearsonr(y, p).statistic,
    "spearman": lambda y, p: scipy.stats.spearmanr(y, p).statistic,
}


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("seed", range(5))
def test_metrics_are_those_of_scikit_learn_and_scipy(metric: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    labels, predicted = random.integers(3, size=(2, 40))  # ties, for the ranks
    assert METRICS[metric](predicted, labels) == pytest.approx(100 * THEIRS[metric](labels, predicted), abs=1e-9)
    assert METRICS[metric](labels, labels) == pytest.approx(100)
    if metric in ("pearson", "spearman"):
        values, guesses = random.normal(size=(2, 40)).astype(np.float32)
        assert METRICS[metric](guesses, values) == pytest.approx(100 * THEIRS[metric](values, guesses), abs=1e-4)


@pytest.mark.parametrize("metric", ["matthews", "pearson", "spearman"])
def test_what_tells_nothing_apart_scores_nothing(metric: str) -> None:
    varied, constant = np.array([0, 1, 1, 0]), np.array([1, 1, 1, 1])
    assert METRICS[metric](constant, varied) == 0.0
    assert METRICS[metric](varied, constant) == 0.0


examples = st.lists(st.integers(0, 4), min_size=1, max_size=40).map(
    lambda labels: Examples({"x": np.arange(len(labels))}, np.array(labels, dtype=np.int64))
)


@given(examples, st.integers(1, 45), st.integers(0, 3))
def test_a_draw_is_without_replacement_and_holds_each_class(given_: Examples, count: int, seed: int) -> None:
    rows = draw_rows(given_, count, [seed, 7])
    assert len(rows) == len(set(rows.tolist())) == min(count, len(given_))
    classes, drawn = set(given_.labels.tolist()), set(given_.labels[rows].tolist())
    assert drawn == classes if count >= len(classes) else len(drawn) == count
    assert rows.tolist() == draw_rows(given_, count, [seed, 7]).tolist()


def test_draws_follow_their_key_and_are_fair() -> None:
    balanced = Examples({"x": list("abcdefghij") * 10}, np.arange(100, dtype=np.int64) % 2)
    draws = [draw_rows(balanced, 20, [seed]).tolist() for seed in range(300)]
    assert len({tuple(d) for d in draws}) == 300
    counts = np.bincount(np.concatenate(draws), minlength=100)  # 60 expected of each, deviation 7
    assert 30 < counts.min() < counts.max() < 95
    some = draw(balanced, 20, [0])
    assert some.inputs["x"] == [balanced.inputs["x"][i] for i in draws[0]]
    assert some.labels.tolist() == balanced.labels[draws[0]].tolist()


def test_all_examples_come_as_they_are() -> None:
    values = Examples({"x": np.arange(6)}, np.linspace(0, 1, 6, dtype=np.float32))
    assert draw(values, None, [0]).inputs["x"].tolist() == [0, 1, 2, 3, 4, 5]
    assert draw(values, 9, [0]).inputs["x"].tolist() == [0, 1, 2, 3, 4, 5]
    assert len(draw(values, 3, [0])) == 3  # values have no classes to hold
    assert values.first(2).inputs["x"].tolist() == [0, 1]
    assert values.first(None) is values
