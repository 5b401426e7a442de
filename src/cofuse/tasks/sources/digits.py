"""scikit-learn's handwritten digits: 1,797 real images of 8x8 pixels, bundled with the package."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from ...document import Document
from ...errors import TaskError

# Shares of the 1,797 images that each split has; the split is fixed for all tasks, so none leaks into another.
_VALIDATION, _TEST = 0.15, 0.35


class Digits(Document):
    """Images of some digits; the label is the group that an image's digit stands in.

    Digits in no group are left out: `groups: [[0, 2, 4], [1, 3, 5]]` tells even from odd among 0 to 5.
    """

    source: Literal["digits"]
    groups: tuple[tuple[int, ...], ...] = Field(default_factory=lambda: tuple((d,) for d in range(10)), min_length=2)

    @model_validator(mode="after")
    def _digits_once(self) -> Digits:
        digits = [d for group in self.groups for d in group]
        if len(set(digits)) != len(digits) or not set(digits) <= set(range(10)):
            raise ValueError("groups of digits 0 to 9, each at most once")
        return self

    def columns(self, split: str, names: tuple[str, ...]) -> dict[str, Any]:
        """The split's images [n, 1, 8, 8] in 0 to 1, and labels.

        Raises:
            TaskError: a column that digits do not have.
        """
        other = sorted(set(names) - {"image", "label"})
        if other:
            raise TaskError("a column is missing", where="digits", got="image, label", expected=", ".join(other))
        images, digits, splits = _load()
        group_of = {d: g for g, group in enumerate(self.groups) for d in group}
        rows = np.flatnonzero((splits == split) & np.isin(digits, list(group_of)))
        labels = np.array([group_of[int(d)] for d in digits[rows]], dtype=np.int64)
        return {"image": images[rows], "label": labels}

    def fingerprint(self) -> str:
        """The data is bundled and the split fixed; the document says the rest."""
        return "scikit-learn digits, split 1"

    def under(self, folder: Path) -> Digits:
        """Itself: nothing is read from a folder."""
        return self


@cache
def _load() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64], npt.NDArray[np.str_]]:
    from sklearn.datasets import load_digits

    data = load_digits()
    images = (data.images / 16.0).astype(np.float32)[:, None]  # [n, channel, height, width]
    digits = data.target.astype(np.int64)
    splits = np.full(len(digits), "train", dtype="<U10")
    for digit in range(10):  # stratified
        rows = np.random.default_rng([digit, 1797]).permutation(np.flatnonzero(digits == digit))
        test, validation = round(_TEST * len(rows)), round(_VALIDATION * len(rows))
        splits[rows[:test]] = "test"
        splits[rows[test : test + validation]] = "validation"
    order = np.random.default_rng(1797).permutation(len(digits))
    return images[order], digits[order], splits[order]
