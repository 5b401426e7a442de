"""Scores of predictions against labels; higher is better, in percent. One table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def accuracy(predicted: Array, labels: Array) -> float:
    """Share of predictions that equal the label, in percent.

    >>> accuracy(np.array([0, 1]), np.array([0, 0]))
    50.0
    """
    return float(100.0 * np.mean(predicted == labels))


def macro_f1(predicted: Array, labels: Array) -> float:
    """Mean over the classes of the labels and predictions of 2 tp / (2 tp + fp + fn), in percent."""
    from sklearn.metrics import f1_score

    return float(100.0 * f1_score(labels, predicted, average="macro", zero_division=0.0))


def matthews(predicted: Array, labels: Array) -> float:
    """Matthews correlation, in percent; 0 when either side has one class only."""
    from sklearn.metrics import matthews_corrcoef

    if len(np.unique(labels)) < 2 or len(np.unique(predicted)) < 2:
        return 0.0
    return float(100.0 * matthews_corrcoef(labels, predicted))


def pearson(predicted: Array, labels: Array) -> float:
    """Linear correlation of values, in percent; 0 when either side is constant."""
    if np.ptp(predicted) == 0 or np.ptp(labels) == 0:
        return 0.0
    return float(100.0 * np.corrcoef(predicted, labels)[0, 1])


def spearman(predicted: Array, labels: Array) -> float:
    """Correlation of ranks, in percent; equal values share their mean rank."""
    from scipy.stats import rankdata

    return pearson(rankdata(predicted), rankdata(labels))


# The scores that values have; the others want classes.
CORRELATIONS = frozenset({"pearson", "spearman"})

METRICS: dict[str, Callable[[Array, Array], float]] = {
    "accuracy": accuracy,
    "macro_f1": macro_f1,
    "matthews": matthews,
    "pearson": pearson,
    "spearman": spearman,
}
