"""Linear probing: features of a frozen body, and scikit-learn's logistic or ridge regression on them."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import nn

from ..checkpoint import Checkpoint
from ..document import Document
from .examples import Examples
from .kinds import Encoded
from .model import Head, Pooling, Precision, forward_all, load_body, pooled
from .task import Task
from .training import settle_process

CONSTANT = 1e-4  # of the largest deviation of a feature: what varies less is constant


class Probing(Document):
    """How to probe.

    `standardize` brings each feature to mean 0 and deviation 1 over the training examples first. Without it the
    penalty weighs on bodies whose features vary little, as it does on a head that is trained by gradient steps.
    """

    max_length: int = Field(128, gt=1)
    pooling: Pooling = "mean"
    precision: Precision = "auto"
    c: float = Field(1.0, gt=0)  # inverse strength of the penalty, as in scikit-learn
    iterations: int = Field(1000, gt=0)
    standardize: bool = False


def features(
    base: Checkpoint, task: Task, examples: Examples, settings: Probing, batch_size: int = 64
) -> npt.NDArray[np.float32]:
    """Pooled vectors [n, width] of a frozen body, in the order of the examples."""
    settle_process()
    body = load_body(base)
    encoded = task.what.encode(examples, base, settings.max_length)
    return body_features(body, task, encoded, settings.pooling, settings.precision, batch_size)


def body_features(
    body: nn.Module, task: Task, encoded: Encoded, pooling: Pooling, precision: Precision, batch_size: int = 64
) -> npt.NDArray[np.float32]:
    """The same for a body that is loaded and examples that are encoded."""
    body.eval()
    return forward_all(lambda batch: pooled(body, batch, pooling), task.what, encoded, precision, batch_size)


class Probe:
    """A fitted linear head."""

    def __init__(
        self, task: Task, vectors: npt.NDArray[np.float32], labels: npt.NDArray[Any], settings: Probing
    ) -> None:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression, Ridge

        self.mean = vectors.mean(0) if settings.standardize else np.zeros(vectors.shape[1], dtype=np.float32)
        deviation = vectors.std(0) if settings.standardize else np.ones(vectors.shape[1], dtype=np.float32)
        # What is constant but for rounding (MiniLM has such a feature) would get a weight of 10^7, harmless on a body that
        # stays as it is and on no other: it gets none.
        self.deviation = np.where(deviation > CONSTANT * deviation.max(), deviation, np.inf)
        scaled = (vectors - self.mean) / self.deviation
        self._model: Any
        if task.what.continuous:
            self._model = Ridge(alpha=1 / settings.c).fit(scaled, labels)
            return
        if len(np.unique(labels)) == 1:  # nothing to tell apart: scikit-learn refuses, a majority does not
            self._model = _Always(int(labels[0]))
            return
        with warnings.catch_warnings():
            # A fit cut short is still the same fit for every body; the limit is in the settings.
            warnings.simplefilter("ignore", ConvergenceWarning)
            self._model = LogisticRegression(C=settings.c, max_iter=settings.iterations).fit(scaled, labels)

    def predict(self, vectors: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
        """Classes or values [n] of pooled vectors [n, width]."""
        return np.asarray(self._model.predict((vectors - self.mean) / self.deviation))

    def linear(self, outputs: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Weight [outputs, width] and bias [outputs] of the same head; classes never seen get a low bias."""
        weight, bias = np.atleast_2d(self._model.coef_), np.atleast_1d(self._model.intercept_)
        if outputs > 1:
            if len(self._model.classes_) == 2:  # two classes: scikit-learn keeps the difference only
                weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
            seen = self._model.classes_
            whole_weight, whole_bias = np.zeros((outputs, weight.shape[1])), np.full(outputs, -10.0)
            whole_weight[seen], whole_bias[seen] = weight, bias
            weight, bias = whole_weight, whole_bias
        weight = weight / self.deviation
        return weight, bias - weight @ self.mean


class _Always:
    def __init__(self, label: int) -> None:
        self.label = label
        self.classes_ = np.array([label])
        self.coef_ = np.zeros((1, 1))
        self.intercept_ = np.zeros(1)

    def predict(self, vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
        return np.full(len(vectors), self.label, dtype=np.int64)


def fit_head(head: Head, body: nn.Module, task: Task, encoded: Encoded, pooling: Pooling, precision: Precision) -> None:
    """Start a head from a probe of the frozen body, so that the first steps do not distort the body.

    Source: "Fine-tuning can distort pretrained features", arXiv 2202.10054 (LP-FT).
    """
    vectors = body_features(body, task, encoded, pooling, precision)
    # A strong penalty: a head that fits its examples to the last one leaves the body nothing to learn from.
    probe = Probe(task, vectors, encoded.labels, Probing(standardize=True, c=0.02))
    if isinstance(probe._model, _Always):
        return
    weight, bias = probe.linear(task.outputs)
    with torch.no_grad():
        head.linear.weight.copy_(torch.from_numpy(weight))
        head.linear.bias.copy_(torch.from_numpy(bias))
