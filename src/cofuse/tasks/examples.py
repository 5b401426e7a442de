"""Examples in memory: columns of inputs, and labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Examples:
    """Some rows of a split.

    Attributes:
        inputs: columns by name, each as long as `labels`: lists of strings, or arrays.
        labels: class numbers [n] (int64), or values [n] (float32) of a regression.
    """

    inputs: Mapping[str, Any]
    labels: npt.NDArray[Any]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: npt.NDArray[np.int64]) -> Examples:
        """Those rows, in that order."""
        return Examples({name: _take(column, rows) for name, column in self.inputs.items()}, self.labels[rows])

    def first(self, count: int | None) -> Examples:
        """The first rows; all when None. Splits are shuffled, so these are a fair sample."""
        return self if count is None or count >= len(self) else self.take(np.arange(count))


def _take(column: Any, rows: npt.NDArray[np.int64]) -> Any:
    return column[rows] if isinstance(column, np.ndarray) else [column[i] for i in rows]


def draw(examples: Examples, count: int | None, seed: Sequence[int]) -> Examples:
    """A random sample; see `draw_rows`.

    >>> e = Examples({"x": np.arange(6)}, np.array([0, 0, 0, 0, 0, 1]))
    >>> sorted(draw(e, 2, [0]).labels.tolist())
    [0, 1]
    """
    return examples.take(draw_rows(examples, count, seed))


def draw_rows(examples: Examples, count: int | None, seed: Sequence[int]) -> npt.NDArray[np.int64]:
    """Row numbers of a random sample without replacement, keyed by `seed` alone; all rows when `count` is None.

    Classification samples hold each class at least once where `count` allows: few-shot learning of a class that was
    never seen is not what is measured.
    """
    if count is None or count >= len(examples):
        return np.arange(len(examples))
    order = np.random.default_rng(list(seed)).permutation(len(examples))
    if not np.issubdtype(examples.labels.dtype, np.integer):
        return order[:count]
    _, firsts = np.unique(examples.labels[order], return_index=True)
    kept = order[np.sort(firsts)][:count]
    rest = order[~np.isin(order, kept)]
    return np.concatenate([kept, rest[: count - len(kept)]])
