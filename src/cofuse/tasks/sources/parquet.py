"""Rows in `train.parquet`, `validation.parquet` and `test.parquet` of a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from blake3 import blake3

from ...document import Document
from ...errors import TaskError


class Parquet(Document):
    """A folder with one parquet file a split."""

    source: Literal["parquet"]
    folder: Path

    def columns(self, split: str, names: tuple[str, ...]) -> dict[str, Any]:
        """Columns of a split as lists.

        Raises:
            TaskError: no such file, not parquet, or a column is missing.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = self.folder / f"{split}.parquet"
        try:
            with pq.ParquetFile(path) as file:
                there = file.schema_arrow.names
                missing = [n for n in names if n not in there]
                table = None if missing else file.read(columns=list(names))
        except FileNotFoundError:
            raise TaskError("no such split", where=path) from None
        except (pa.ArrowException, OSError) as error:
            raise TaskError("cannot read the split", where=path, got=(str(error).splitlines() or ["?"])[0]) from None
        if table is None:
            raise TaskError("a column is missing", where=path, got=there, expected=", ".join(missing))
        return {n: table.column(n).to_pylist() for n in names}

    def fingerprint(self) -> str:
        """A hash of the files."""
        h = blake3()
        for split in ("train", "validation", "test"):
            path = self.folder / f"{split}.parquet"
            if path.is_file():
                h.update(split.encode())
                h.update(blake3(path.read_bytes()).digest())
        return h.hexdigest()

    def under(self, folder: Path) -> Parquet:
        """The same with a relative folder taken from `folder`."""
        return self.model_copy(update={"folder": folder / self.folder})
