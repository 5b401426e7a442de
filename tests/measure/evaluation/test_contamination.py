"""Shared texts against a twin that compares every row with every row."""

from __future__ import annotations

import json
import string
import unicodedata
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tasks.tiny import even, opinion_task

from cofuse.errors import TaskError
from cofuse.measure.evaluation import contamination as module
from cofuse.measure.evaluation.contamination import Overlap, Row, contamination, file_rows, folded, task_rows

# Few words and much that does not count, so that rows meet by chance.
texts = st.lists(st.sampled_from(["a", "B", "b", "c,", "!", " ", "\t", "É", "e\u0301", "_"]), max_size=4).map("".join)
rows = st.lists(st.one_of(st.tuples(texts), st.tuples(texts, texts)), max_size=12)


def bare(text: str) -> list[str]:
    """Words by hand: letters and digits, everything else parts them."""
    text = unicodedata.normalize("NFKC", text).casefold()
    return "".join(c if c.isalnum() else " " for c in text).split()


def slow(train: list[Row], test: list[Row], n: int | None, share: float) -> Overlap:
    whole, parts, near = [], [], []
    for i, row in enumerate(test):
        mine = sorted(bare(t) for t in row)
        for j, other in enumerate(train):
            if any(mine) and sorted(bare(t) for t in other) == mine:
                whole.append((i, j))
                break
        for j, other in enumerate(train):
            if any(bare(a) and bare(a) == bare(b) for a in row for b in other):
                parts.append((i, j))
                break
        if n is not None:

            def runs(some: Row, n: int = n) -> set[tuple[str, ...]]:
                return {tuple(w[k : k + n]) for w in map(bare, some) for k in range(len(w) - n + 1)}

            known = {r for other in train for r in runs(other)}
            if runs(row) and len(runs(row) & known) / len(runs(row)) >= share:
                near.append(i)
    return Overlap("test", len(test), len(train), tuple(whole), tuple(parts), tuple(near))


@given(rows, rows, st.sampled_from([None, 1, 2]), st.sampled_from([0.5, 1.0]))
def test_shared_texts_are_those_of_the_slow_twin(
    train: list[Row], test: list[Row], n: int | None, share: float
) -> None:
    assert contamination(iter(train), test, ngrams=n, share=share) == slow(train, test, n, share)


@given(rows, rows)
def test_pieces_of_the_training_set_make_no_difference(train: list[Row], test: list[Row]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BATCH", 2)
        few = contamination(iter(train), test, ngrams=2)
    assert few == contamination(train, test, ngrams=2)


@given(st.text())
def test_what_does_not_count_does_not(text: str) -> None:
    assert folded(folded(text)) == folded(text)
    assert folded(f" \n{text}!") == folded(text)
    ascii_only = "".join(c for c in text if c in string.printable)
    assert folded(ascii_only.upper()) == folded(ascii_only.lower())


def test_planted_texts_are_found(tmp_path: Path) -> None:
    task = opinion_task(tmp_path / "task", (40, 8, 60))
    test = task_rows(task)
    fresh = [(f"nothing like it {i}",) for i in range(500)]
    planted = {7: test[3], 100: (f"  {test[9][0].upper()} !",), 499: ("x", test[20][0])}
    train = [planted.get(i, row) for i, row in enumerate(fresh)]
    found = contamination(train, test)
    assert {(9, 100), (3, 7)} <= set(found.rows) | {(i, j) for i, j in found.texts}
    assert (20, 499) in found.texts or any(i == 20 for i, _ in found.rows)
    assert all(folded(test[i][0]) == folded(train[j][0]) for i, j in found.rows)
    assert contamination(fresh, test).texts == ()


def test_texts_of_files(tmp_path: Path) -> None:
    said = [("one", "two"), ("three", "four")]
    pq.write_table(pa.table({"text": ["one", "three"], "text_pair": ["two", "four"]}), tmp_path / "a.parquet")
    lines = [json.dumps({"text": a, "text_pair": b}) for a, b in said]
    (tmp_path / "a.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "a.txt").write_text("one\nthree\n")
    assert list(file_rows(tmp_path / "a.parquet")) == list(file_rows(tmp_path / "a.jsonl")) == said
    assert [folded(t) for (t,) in file_rows(tmp_path / "a.txt")] == ["one", "three"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", b""),
        ("a.parquet", b"no"),
        ("a.jsonl", b"{\n"),
        ("a.jsonl", b'{"txt": "a"}\n'),
        ("a.txt", b"\xff\xfe"),
        ("none.txt", None),
    ],
)
def test_what_is_no_file_of_texts_is_refused(tmp_path: Path, name: str, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(TaskError):
        list(file_rows(tmp_path / name))


def test_images_have_no_texts() -> None:
    with pytest.raises(TaskError, match="only texts"):
        task_rows(even())
