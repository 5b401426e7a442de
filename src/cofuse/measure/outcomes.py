"""What a model did example by example: the one thing that evaluating gives and comparing takes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..checkpoint import SafetensorsFile, build_header, replace_file
from ..errors import CheckpointError, TaskError
from ..tasks.metrics import CORRELATIONS, METRICS

_KEY = "cofuse.outcomes"
_WORDS = ("model", "suite", "task", "task_id", "protocol", "metric", "seed")
_ARRAYS = ("examples", "scores", "labels", "predictions", "log_probabilities")
_DTYPES = {"I64": "<i8", "F32": "<f4", "F64": "<f8"}


@dataclass(frozen=True, eq=False, kw_only=True)
class Outcomes:
    """One model on one task by one protocol and seed, example by example.

    Attributes:
        model: content id of what was measured.
        suite: hash of the suite; empty outside one.
        task: its name.
        task_id: its id, which hashes its data: examples mean the same only where it agrees.
        protocol: a row of `PROTOCOLS`.
        metric: what the task is scored by: a row of `METRICS`, or another name, whose value is the mean of `scores`.
        seed: of the head, the training and the draw. Models are paired by it.
        examples: row numbers in the task's test split [n], int64, all different, in any order.
        scores: higher is better [n], float64; where there are classes, 1 for a right prediction and 0 for a wrong one.
        labels: classes [n] (int64) or values [n] (float32); None where the metric needs none (perplexity).
        predictions: of the same kind; None with `labels`.
        log_probabilities: natural logarithms, of each class [n, classes], float32; None where there are none.

    >>> o = Outcomes.predicted(np.array([1, 0]), np.array([1, 1]), model="m", task="t", protocol="probe")
    >>> o.scores.tolist(), o.value
    ([1.0, 0.0], 50.0)
    """

    model: str
    task: str
    protocol: str
    examples: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float64]
    labels: npt.NDArray[Any] | None = None
    predictions: npt.NDArray[Any] | None = None
    log_probabilities: npt.NDArray[np.float32] | None = None
    suite: str = ""
    task_id: str = ""
    metric: str = "accuracy"
    seed: int = 0

    def __post_init__(self) -> None:
        n = len(self.examples)
        where = f"{self.task}, {self.protocol}, seed {self.seed}"
        if (self.labels is None) != (self.predictions is None):
            raise TaskError("outcomes have labels and predictions, or neither", where=where)
        for name in _ARRAYS:
            array = getattr(self, name)
            if array is None:
                continue
            if array.ndim != 1 + (name == "log_probabilities") or len(array) != n or not n:
                raise TaskError("outcomes are one an example", where=f"{where}: {name}", got=array.shape, expected=n)
            if name != "log_probabilities" and not np.isfinite(array).all():
                raise TaskError("an outcome is not finite", where=f"{where}: {name}")
        if self.log_probabilities is not None and np.isnan(self.log_probabilities).any():
            raise TaskError("an outcome is not a number", where=f"{where}: log_probabilities")
        if len(np.unique(self.examples)) < n:
            raise TaskError("an example stands twice among the outcomes", where=where)
        if self.metric in METRICS and self.labels is None:
            raise TaskError("this metric needs labels and predictions", where=where, got=self.metric)

    @classmethod
    def predicted(
        cls,
        predictions: npt.NDArray[Any],
        labels: npt.NDArray[Any],
        *,
        examples: npt.NDArray[np.int64] | None = None,
        metric: str = "accuracy",
        **rest: Any,
    ) -> Outcomes:
        """Outcomes whose scores follow from predictions and labels: right or wrong, or minus the squared error."""
        continuous = metric in CORRELATIONS
        dtype: Any = np.float32 if continuous else np.int64
        said, true = np.asarray(predictions, dtype), np.asarray(labels, dtype)
        scores = -((said.astype(np.float64) - true) ** 2) if continuous else (said == true).astype(np.float64)
        rows = np.arange(len(true), dtype=np.int64) if examples is None else examples
        return cls(examples=rows, scores=scores, labels=true, predictions=said, metric=metric, **rest)

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def classes(self) -> bool:
        """Whether an example is either right or wrong, so that flips can be counted."""
        return self.labels is not None and self.metric not in CORRELATIONS

    @property
    def right(self) -> npt.NDArray[np.bool_]:
        """Whether each example is predicted right [n]; only where there are `classes`."""
        return self.scores > 0.5

    @property
    def value(self) -> float:
        """The metric over all examples: percent for a row of `METRICS`, else the mean score."""
        if self.metric in METRICS and self.labels is not None:
            return METRICS[self.metric](np.asarray(self.predictions), self.labels)
        return float(self.scores.mean())

    def take(self, rows: npt.NDArray[np.integer[Any]] | npt.NDArray[np.bool_]) -> Outcomes:
        """Some of the examples, by their place here, in that order."""
        return replace(self, **{k: a[rows] for k in _ARRAYS if (a := getattr(self, k)) is not None})

    @classmethod
    def joined(cls, parts: Sequence[Outcomes]) -> Outcomes:
        """The outcomes of batches as one: examples of all of them, in their order."""

        def all_of(name: str) -> Any:
            arrays = [getattr(part, name) for part in parts]
            return None if any(a is None for a in arrays) else np.concatenate(arrays)

        return parts[0] if len(parts) == 1 else replace(parts[0], **{name: all_of(name) for name in _ARRAYS})

    def save(self, path: str | Path) -> None:
        """Write a safetensors file, its words as JSON in the header; whole or not at all, the same bytes each time.

        Raises:
            CheckpointError: it cannot be written.
        """
        arrays = {k: np.ascontiguousarray(a) for k in _ARRAYS if (a := getattr(self, k)) is not None}
        arrays = {k: a.astype(a.dtype.newbyteorder("<"), copy=False) for k, a in arrays.items()}
        codes = {dtype: code for code, dtype in _DTYPES.items()}
        words = json.dumps({k: getattr(self, k) for k in _WORDS}, sort_keys=True)
        header = build_header({k: (codes[f"<{a.dtype.str[1:]}"], a.shape) for k, a in arrays.items()}, {_KEY: words})
        replace_file(Path(path), header.raw + b"".join(arrays[k].tobytes() for k in header.entries))

    @classmethod
    def load(cls, path: str | Path) -> Outcomes:
        """Read what `save` wrote.

        Raises:
            CheckpointError: it cannot be read, or is not such a file.
        """
        file = SafetensorsFile(Path(path))
        try:
            words: Mapping[str, Any] = json.loads(file.metadata[_KEY])
            arrays: dict[str, Any] = {
                k: np.frombuffer(file.read_bytes(k), _DTYPES[file.spec(k).dtype]).reshape(file.spec(k).shape)
                for k in file.names()
            }
            return cls(**{k: words[k] for k in _WORDS}, **arrays)
        except (KeyError, ValueError, TypeError, TaskError) as error:
            raise CheckpointError(
                "not a file of outcomes", where=path, got=f"{type(error).__name__}: {error}"
            ) from None
        finally:
            file.close()
