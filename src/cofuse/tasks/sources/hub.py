"""Rows of a data set on the Hugging Face hub, its revision pinned."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from ...document import Document
from ...errors import TaskError

_FIELD = re.compile(r"\{(\w+)\}")


def _joined(name: str, columns: list[list[Any]]) -> list[Any]:
    """One column as it is; or the texts of a template filled with several.

    >>> _joined("{word}: {text}", [["bank"], ["He sat on the bank."]])
    ['bank: He sat on the bank.']
    """
    if not _FIELD.search(name):
        return columns[0]
    parts = _FIELD.split(name)[::2]  # what stands between the fields
    rows = zip(*columns, strict=True)
    return ["".join(p + str(v) for p, v in zip(parts, row, strict=False)) + parts[-1] for row in rows]


class Splits(Document):
    """What the data set calls each split; one it lacks is null."""

    train: str | None = "train"
    validation: str | None = "validation"
    test: str | None = "test"


class Hub(Document):
    """A data set by its id and revision; `splits` maps ours to its own."""

    source: Literal["hub"]
    id: str
    revision: str
    config: str | None = None
    splits: Splits = Splits()

    def columns(self, split: str, names: tuple[str, ...]) -> dict[str, Any]:
        """Columns of a split as lists; a name with columns in braces (`{word}: {sentence}`) is a text made of those.

        Raises:
            TaskError: the data set, the split or a column cannot be had.
        """
        import datasets

        theirs: str | None = getattr(self.splits, split)
        if theirs is None:
            raise TaskError("no such split", where=self.id, got=split)
        try:
            data = datasets.load_dataset(self.id, self.config, revision=self.revision, split=theirs)
        except Exception as error:  # the library raises whatever its loaders raise
            raise TaskError(
                "cannot load the data set",
                where=f"{self.id}@{self.revision}",
                got=(str(error).splitlines() or [type(error).__name__])[0][:200],
                hint="check the id and the revision, and that the hub can be reached or the data set is cached",
            ) from None
        needed = {n: _FIELD.findall(n) or [n] for n in names}
        missing = [c for columns in needed.values() for c in columns if c not in data.column_names]
        if missing:
            raise TaskError("a column is missing", where=self.id, got=data.column_names, expected=", ".join(missing))
        return {n: _joined(n, [list(data[c]) for c in columns]) for n, columns in needed.items()}

    def fingerprint(self) -> str:
        """The id and the revision say it all."""
        return f"{self.id}@{self.revision}/{self.config}"

    def under(self, folder: Path) -> Hub:
        """Itself: ids are not paths."""
        return self
