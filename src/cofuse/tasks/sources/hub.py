"""Rows of a data set on the Hugging Face hub, its revision pinned."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from ...document import Document
from ...errors import TaskError


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
        """Columns of a split as lists.

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
        missing = [n for n in names if n not in data.column_names]
        if missing:
            raise TaskError("a column is missing", where=self.id, got=data.column_names, expected=", ".join(missing))
        return {n: list(data[n]) for n in names}

    def fingerprint(self) -> str:
        """The id and the revision say it all."""
        return f"{self.id}@{self.revision}/{self.config}"

    def under(self, folder: Path) -> Hub:
        """Itself: ids are not paths."""
        return self
