"""Contamination: texts that a training set and an evaluation set share, found by hashes of what is left of them.

What is left: letters and digits, in one case, with single spaces. Eight bytes are kept of each evaluated text and none
of the training set, which is only gone through; a hash of 64 bits errs once in 10^19 / (texts times texts).
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from ...errors import TaskError
from ...tasks import Task

# One text, or the two of a pair.
Row = tuple[str, ...]

_BREAKS = re.compile(r"[\W_]+")
_BATCH = 10_000


@dataclass(frozen=True, slots=True)
class Overlap:
    """What an evaluation set shares with a training set.

    Attributes:
        task: whose test split was looked at.
        tested: rows of it.
        trained: rows of the training set.
        rows: test rows whose whole input, a pair in either order, was trained on; each with the first such train row.
        texts: test rows of which at least one text was trained on, in whatever place; likewise. `rows` are among them.
        near: test rows of which at least `share` of the word n-grams were trained on; empty when not asked for.
    """

    task: str
    tested: int
    trained: int
    rows: tuple[tuple[int, int], ...]
    texts: tuple[tuple[int, int], ...]
    near: tuple[int, ...] = ()


def folded(text: str) -> str:
    """What is compared of a text: its words, without case, punctuation and the width of spaces.

    >>> folded("  It's  GREAT: really   great!")
    'it s great really great'
    """
    return _BREAKS.sub(" ", unicodedata.normalize("NFKC", text).casefold()).strip()


def contamination(
    train: Iterable[Row], test: Sequence[Row], *, task: str = "test", ngrams: int | None = None, share: float = 0.8
) -> Overlap:
    """Find what is shared.

    Args:
        train: rows of the training set; gone through once.
        test: rows of the evaluation set.
        task: what it is called.
        ngrams: also look for rows that share most of their runs of so many words; 8 bytes a run of the evaluation set.
        share: of a row's runs that make it `near`.

    >>> found = contamination([("A film.",), ("Good, good!",)], [("good good",), ("bad",)])
    >>> found.rows, found.texts
    (((0, 1),), ((0, 1),))
    """
    rows = _Index([_row_key(row) for row in test])
    keys = [(key, i) for i, row in enumerate(test) for key in map(_key, row)]
    texts = _Index([key for key, _ in keys])
    owner = np.array([i for _, i in keys], dtype=np.int64)
    grams = None if ngrams is None else _Grams(test, ngrams)
    trained = 0
    for start, batch in _batches(train):
        rows.meet([_row_key(row) for row in batch], np.arange(start, start + len(batch)))
        places = [start + i for i, row in enumerate(batch) for _ in row]
        texts.meet([_key(text) for row in batch for text in row], np.array(places, dtype=np.int64))
        if grams is not None:
            grams.meet(batch)
        trained = start + len(batch)
    firsts: dict[int, int] = {}
    for place, at in texts.met():
        row = int(owner[place])
        firsts[row] = min(at, firsts.get(row, at))
    near = () if grams is None else grams.near(share)
    return Overlap(task, len(test), trained, tuple(rows.met()), tuple(sorted(firsts.items())), near)


class _Index:
    """Hashes of texts, and the first place where each was met; 0 stands for a text without a word, which is never met."""

    def __init__(self, keys: Sequence[int]) -> None:
        self._keys = np.array(keys, dtype=np.uint64)
        self._order = np.argsort(self._keys, kind="stable")
        self._sorted = self._keys[self._order]
        self._first = np.full(len(keys), -1, dtype=np.int64)

    def meet(self, keys: Sequence[int], places: npt.NDArray[np.int64]) -> None:
        """Look up a batch; the keys of a batch are given in the order of their places."""
        wanted, firsts = np.unique(np.array(keys, dtype=np.uint64), return_index=True)
        left, right = (np.searchsorted(self._sorted, wanted, side) for side in ("left", "right"))
        for i in np.flatnonzero((right > left) & (wanted != 0)):
            here = self._order[left[i] : right[i]]
            unmet = here[self._first[here] < 0]
            self._first[unmet] = places[firsts[i]]

    def met(self) -> Iterator[tuple[int, int]]:
        """Places of keys that were met, and where first."""
        for place in np.flatnonzero(self._first >= 0):
            yield int(place), int(self._first[place])


class _Grams:
    """Runs of words of the evaluation set, and which of them were met."""

    def __init__(self, test: Sequence[Row], n: int) -> None:
        self._n = n
        per_row = [np.array(sorted(set(_grams(row, n))), dtype=np.uint64) for row in test]
        self._ends = np.cumsum([0, *map(len, per_row)])
        self._keys, self._which = np.unique(
            np.concatenate([*per_row, np.zeros(0, dtype=np.uint64)]), return_inverse=True
        )
        self._met = np.zeros(len(self._keys), dtype=np.bool_)

    def meet(self, batch: Sequence[Row]) -> None:
        if len(self._keys):
            wanted = np.array([g for row in batch for g in _grams(row, self._n)], dtype=np.uint64)
            at = np.minimum(np.searchsorted(self._keys, wanted), len(self._keys) - 1)
            self._met[at[self._keys[at] == wanted]] = True

    def near(self, share: float) -> tuple[int, ...]:
        met = self._met[self._which]
        spans = enumerate(pairwise(self._ends))
        return tuple(i for i, (start, end) in spans if end > start and met[start:end].mean() >= share)


def _grams(row: Row, n: int) -> Iterator[int]:
    for text in row:
        words = folded(text).split()
        for i in range(len(words) - n + 1):  # shorter texts have none: a word or two is shared by accident
            yield _hash(" ".join(words[i : i + n]))


def _key(text: str) -> int:
    words = folded(text)
    return _hash(words) if words else 0


def _row_key(row: Row) -> int:
    words = sorted(map(folded, row))  # a pair the other way around is the same example
    return _hash("\n".join(words)) if any(words) else 0


def _hash(text: str) -> int:
    return int.from_bytes(blake3(text.encode()).digest(8), "little")


def _batches(rows: Iterable[Row]) -> Iterator[tuple[int, list[Row]]]:
    start, batch = 0, []
    for row in rows:
        batch.append(row)
        if len(batch) == _BATCH:
            yield start, batch
            start, batch = start + len(batch), []
    if batch:
        yield start, batch


# Where texts come from


def task_rows(task: Task, split: str = "test") -> list[Row]:
    """The texts of a task's split.

    Raises:
        TaskError: the task has none.
    """
    if "text" not in task.what.columns:
        raise TaskError("only texts can be compared", where=task.name, got=task.kind)
    inputs = task.examples("train" if split == "train" else "test").inputs
    return list(zip(*(inputs[name] for name in ("text", "text_pair") if name in inputs), strict=True))


def file_rows(path: Path) -> Iterator[Row]:
    """The texts of a file, a piece at a time: parquet and JSON lines with `text` and `text_pair`, or text by the line.

    Raises:
        TaskError: it cannot be read, or has no texts.
    """
    read = {".parquet": _parquet_rows, ".jsonl": _json_rows, ".txt": _lines}.get(path.suffix)
    if read is None:
        raise TaskError("not a file of texts", where=path, expected=".parquet, .jsonl or .txt")
    try:
        yield from read(path)
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError("cannot read the texts", where=path, got=(str(error).splitlines() or ["?"])[0]) from None


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            names = [n for n in ("text", "text_pair") if n in file.schema_arrow.names]
            if "text" not in names:
                raise TaskError("no texts", where=path, got=file.schema_arrow.names, expected="a column text")
            for batch in file.iter_batches(_BATCH, columns=names):
                yield from zip(*([t or "" for t in batch.column(n).to_pylist()] for n in names), strict=True)
    except pa.ArrowException as error:
        raise TaskError("cannot read the texts", where=path, got=(str(error).splitlines() or ["?"])[0]) from None


def _json_rows(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                said = json.loads(line)
                yield tuple(str(said[n]) for n in ("text", "text_pair") if n == "text" or n in said)
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise TaskError("not a row of texts", where=f"{path}:{number}", got=type(error).__name__) from None


def _lines(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield (line,)
