"""Tasks and suites: read from folders, YAML and bundled data; what is wrong in them is said."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cofuse.document import read_document
from cofuse.errors import DocumentError, TaskError
from cofuse.tasks import KINDS, METRICS, Suite, Task, open_suite, open_task

from .tiny import bert, even, opinions, vit, write_task

SAID = {"name": "t", "kind": "topic", "labels": ["bad", "good"]}
ROWS = {"train": opinions(8, 0), "validation": opinions(4, 1), "test": opinions(6, 2)}


def digits(**data: Any) -> Task:
    return Task.model_validate({"name": "d", "kind": "image_classification", "data": {"source": "digits", **data}})


# Folders


def test_a_folder_of_parquet_files_is_a_task(tmp_path: Path) -> None:
    task = open_task("t", folders=(tmp_path / "nowhere", write_task(tmp_path / "t", ROWS, SAID).parent))
    assert (task.name, task.kind, task.labels, task.score_name) == ("t", "classification", ("bad", "good"), "accuracy")
    for split in ("train", "validation", "test"):
        examples = task.examples(split)
        assert examples.inputs["text"] == ROWS[split]["text"]
        assert examples.labels.tolist() == ROWS[split]["label"]
        assert examples.labels.dtype == np.int64
    assert open_task(str(tmp_path / "t")) == task


def test_pairs_and_regressions_in_folders(tmp_path: Path) -> None:
    rows = {"train": {"text": ["a", "b"], "text_pair": ["c", "d"], "label": [0, 1]}}
    pair = open_task(str(write_task(tmp_path / "p", rows, {**SAID, "pair": True})))
    assert pair.kind == "pair_classification"
    assert pair.examples("train").inputs == {"text": ["a", "b"], "text_pair": ["c", "d"]}
    rows = {"train": {"text": ["a", "b"], "text_pair": ["c", "d"], "label": [0.5, 2.5]}}
    rated = open_task(str(write_task(tmp_path / "r", rows, {"name": "r", "kind": "regression", "pair": True})))
    assert (rated.outputs, rated.score_name) == (1, "spearman")
    assert rated.examples("train").inputs == {"text": ["a", "b"], "text_pair": ["c", "d"]}
    assert rated.examples("train").labels.tolist() == [0.5, 2.5]
    single = open_task(str(write_task(tmp_path / "s", rows, {"name": "s", "kind": "regression"})))
    assert single.examples("train").inputs == {"text": ["a", "b"]}


def test_a_relative_folder_is_another_one_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = set()
    for n in (8, 16):
        write_task(
            tmp_path / str(n) / "task", {"train": opinions(n, 0)}, {"name": "opinions", "labels": ["bad", "good"]}
        )
        monkeypatch.chdir(tmp_path / str(n))
        task = open_task("task")
        assert len(task.examples("train")) == n
        ids.add(task.id)
    assert len(ids) == 2


def test_columns_that_were_written_out_are_read_although_equal_tasks_were_before(tmp_path: Path) -> None:
    rows = {"train": {"text": ["a"], "text_pair": ["b"], "label": [1.0]}}
    write_task(tmp_path / "r", rows, {})
    plain = {"name": "r", "kind": "regression", "data": {"source": "parquet", "folder": tmp_path / "r"}}
    assert set(Task.model_validate(plain).examples("train").inputs) == {"text"}
    paired = Task.model_validate({**plain, "columns": {"text_pair": "text_pair"}})
    assert set(paired.examples("train").inputs) == {"text", "text_pair"}


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("not json", ["not a task.json", "JSONDecodeError"]),
        ([1], ["not a task.json"]),
        ({"labels": ["a", "b"]}, ["not a task.json", "name"]),
        ({**SAID, "name": "../x"}, ["not a task.json", "name"]),
        ({**SAID, "labels": ["only"]}, ["not a task.json", "at least two"]),
        ({**SAID, "labels": ["same", "same"]}, ["not a task.json", "different"]),
        ({**SAID, "labels": "ab"}, ["not a task.json", "labels"]),
        ({**SAID, "metric": "acuracy"}, ["not a task.json", 'did you mean "accuracy"?']),
        ({**SAID, "kind": "regression", "metric": "macro_f1"}, ["not a task.json", "pearson or spearman"]),
    ],
)
def test_a_bad_task_json_is_one_error(said: Any, words: list[str], tmp_path: Path) -> None:
    folder = write_task(tmp_path / "t", ROWS, {})
    (folder / "task.json").write_text(said if isinstance(said, str) else json.dumps(said))
    with pytest.raises(TaskError) as caught:
        open_task(str(folder))
    assert all(word in str(caught.value) for word in words), caught.value
    assert caught.value.where == str(folder / "task.json")


def train_of(tmp_path: Path, columns: dict[str, list[Any]], **changes: Any) -> TaskError:
    folder = write_task(tmp_path / "t", {"train": columns}, {**SAID, **changes})
    with pytest.raises(TaskError) as caught:
        open_task(str(folder)).examples("train")
    return caught.value


@pytest.mark.parametrize(
    ("columns", "changes", "what", "got"),
    [
        ({"text": ["a"], "label": [2]}, {}, "a label is not among the task's", "2"),
        ({"text": ["a", "b"], "label": [1, -1]}, {}, "a label is not among the task's", "-1"),
        ({"text": ["a"], "label": ["worse"]}, {}, "a label is not among the task's", "'worse'"),
        ({"text": ["a"], "label": [0.5]}, {}, "a label is not among the task's", "'float' object"),
        ({"text": ["a"], "label": [float("nan")]}, {}, "a label is not among the task's", "'float' object"),
        ({"text": ["a", None], "label": [0, 1]}, {}, "an empty cell", None),
        ({"text": ["a", "b"], "label": [0, None]}, {}, "an empty cell", None),
        ({"words": ["a"], "label": [0]}, {}, "a column is missing", "['words', 'label']"),
        ({"text": ["a"]}, {}, "a column is missing", "['text']"),
        ({"text": ["a"], "label": [0]}, {"pair": True}, "a column is missing", "text"),
        ({"text": [], "label": []}, {}, "the split is empty", None),
        ({"text": ["a"], "label": ["high"]}, {"kind": "regression"}, "a label is not a number", "high"),
        ({"text": ["a"], "label": [float("inf")]}, {"kind": "regression"}, "a label is not finite", None),
    ],
)  # fmt: skip
def test_bad_rows_are_told(
    columns: dict[str, list[Any]], changes: dict[str, Any], what: str, got: str | None, tmp_path: Path
) -> None:
    error = train_of(tmp_path, columns, **changes)
    assert error.what == what
    assert (got or "") in (error.got or "")


def test_labels_may_be_names(tmp_path: Path) -> None:
    rows = {"train": {"text": ["a", "b", "c"], "label": ["good", "bad", "good"]}}
    assert open_task(str(write_task(tmp_path / "t", rows, SAID))).examples("train").labels.tolist() == [1, 0, 1]


def test_missing_and_damaged_splits(tmp_path: Path) -> None:
    folder = write_task(tmp_path / "t", {"train": opinions(4, 0)}, SAID)
    (folder / "test.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(TaskError, match="no such split") as caught:
        open_task(str(folder)).examples("validation")
    assert caught.value.where == str(folder / "validation.parquet")
    with pytest.raises(TaskError, match="cannot read the split"):
        open_task(str(folder)).examples("test")


def test_texts_are_strings(tmp_path: Path) -> None:
    folder = write_task(tmp_path / "t", {"train": {"text": [7, 8], "label": [0, 1]}}, SAID)
    task = open_task(str(folder))
    with pytest.raises(TaskError, match="a text is not a string"):
        task.what.encode(task.examples("train"), bert(), 16)


def test_the_id_follows_the_data_and_not_its_place(tmp_path: Path) -> None:
    def id_of(name: str, **changes: Any) -> str:
        return open_task(str(write_task(tmp_path / name, {**ROWS, **changes}, SAID))).id

    first = id_of("one")
    assert first == id_of("two")
    assert first != id_of("three", test=opinions(6, 7))
    assert even().id == even().id != digits().id


# YAML


def test_a_task_in_yaml(tmp_path: Path) -> None:
    write_task(tmp_path / "data" / "t", ROWS, {})
    text = "name: mine\nkind: classification\nlabels: [bad, good]\nmetric: macro_f1\ndata: {source: parquet, folder: data/t}\n"
    (tmp_path / "mine.yaml").write_text(text)
    task = open_task("mine.yaml", folders=(tmp_path,))
    assert (task.name, task.score_name, len(task.examples("train"))) == ("mine", "macro_f1", 8)
    (tmp_path / "data" / "t" / "task.json").unlink()
    (tmp_path / "data" / "t" / "task.yaml").write_text(text.replace("data/t", "."))
    assert open_task("data/t", folders=(tmp_path,)).examples("test").labels.tolist() == ROWS["test"]["label"]


@pytest.mark.parametrize(
    ("was", "now", "what", "hint"),
    [
        ("kind: classification", "kind: clasification", 'bad value of "kind"', 'did you mean "classification"?'),
        ("metric: accuracy", "metric: acuracy", 'bad value of "metric"', 'did you mean "accuracy"?'),
        ("metric:", "metrik:", 'unknown key "metrik"', 'did you mean "metric"?'),
        ("parquet", "parqet", 'bad value of "data"', 'did you mean "parquet"?'),
        ("folder", "foldr", 'unknown key "foldr"', 'did you mean "folder"?'),
        ("labels: [a, b]", "labels: []", 'bad value of "document"', "at least two"),
    ],
)
def test_a_mistake_in_yaml_is_told(was: str, now: str, what: str, hint: str, tmp_path: Path) -> None:
    text = "name: t\nkind: classification\nmetric: accuracy\nlabels: [a, b]\ndata: {source: parquet, folder: x}\n"
    (tmp_path / "t.yaml").write_text(text.replace(was, now))
    with pytest.raises(DocumentError) as caught:
        open_task("t.yaml", folders=(tmp_path,))
    assert caught.value.what == what
    assert hint in str(caught.value)


def test_suites(tmp_path: Path) -> None:
    write_task(tmp_path / "opinions", ROWS, SAID)
    (tmp_path / "s.yaml").write_text(
        "name: s\ntasks:\n- opinions\n- {name: d, kind: image_classification, data: {source: digits}}\n"
    )
    suite = read_document(tmp_path / "s.yaml", Suite)
    assert [t.name for t in open_suite(suite.tasks, folders=(tmp_path,))] == ["t", "d"]
    with pytest.raises(TaskError, match="two tasks have one name"):
        open_suite(("opinions", "opinions"), folders=(tmp_path,))
    with pytest.raises(TaskError, match="unknown task") as caught:
        open_suite(("opinoins",), folders=(tmp_path,))
    assert caught.value.hint == 'did you mean "opinions"?'
    with pytest.raises(TaskError, match="unknown task") as caught:
        open_task("anything", folders=(tmp_path / "nowhere",))
    assert "COFUSE_TASKS" in str(caught.value.hint)
    with pytest.raises(TaskError, match="needs its columns and labels"):
        open_task("hf:org/data")


def test_a_hub_task_can_be_asked_for_and_says_what_is_missing(tmp_path: Path) -> None:
    data = {"source": "hub", "id": "no/such-data", "revision": "main", "splits": {"test": None}}
    task = Task.model_validate({"name": "h", "kind": "classification", "labels": ["a", "b"], "data": data})
    with pytest.raises(TaskError, match="no such split"):
        task.examples("test")
    assert task.id != task.model_copy(update={"data": task.data.model_copy(update={"revision": "v2"})}).id
    (tmp_path / "h.yaml").write_text(
        "name: h\nkind: classification\nlabels: [a, b]\n"
        "data: {source: hub, id: x/y, revision: main, splits: {tets: t}}\n"
    )
    with pytest.raises(DocumentError, match="unknown key"):
        open_task("h.yaml", folders=(tmp_path,))


# Digits and images


def test_digits_are_split_once_for_all_tasks() -> None:
    whole = {split: digits().examples(split) for split in ("train", "validation", "test")}
    assert sum(map(len, whole.values())) == 1797
    assert [len(e) for e in whole.values()] == [899, 269, 629]
    images = {split: {i.tobytes() for i in e.inputs["image"]} for split, e in whole.items()}
    assert not images["train"] & images["test"]
    assert not images["train"] & images["validation"]
    assert not images["validation"] & images["test"]
    # A task on some digits sees no image of another split of any task.
    for split in ("train", "validation", "test"):
        some = even().examples(split)
        assert {i.tobytes() for i in some.inputs["image"]} <= images[split]
        counts = np.bincount(whole[split].labels, minlength=10)
        assert counts.min() > 0.85 * counts.max()
        assert len(some) == counts[:6].sum()


def test_digits_are_labelled_by_their_group() -> None:
    whole, some = digits().examples("test"), digits(groups=[[3], [0, 9]]).examples("test")
    digit_of = {image.tobytes(): int(d) for image, d in zip(whole.inputs["image"], whole.labels, strict=True)}
    got = {(digit_of[i.tobytes()], int(label)) for i, label in zip(some.inputs["image"], some.labels, strict=True)}
    assert got == {(3, 0), (0, 1), (9, 1)}
    assert some.inputs["image"].shape[1:] == (1, 8, 8)
    assert 0.0 <= some.inputs["image"].min() < some.inputs["image"].max() <= 1.0
    assert digits().labels == tuple("0123456789")
    assert digits(groups=[[3], [0, 9]]).labels == ("3", "0 9")


@pytest.mark.parametrize("groups", [[[0, 1]], [[0], [0, 1]], [[0], [10]], [[0], [-1]]])
def test_bad_groups_are_refused(groups: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="groups"):
        digits(groups=groups)


def test_digits_hold_no_text() -> None:
    task = even().model_copy(update={"kind": "classification"})
    with pytest.raises(TaskError, match="a column is missing"):
        task.examples("train")


def test_pictures_in_parquet(tmp_path: Path) -> None:
    def picture(value: int, mode: str = "RGB", size: int = 20) -> bytes:
        out = io.BytesIO()
        Image.new(mode, (size, size), value if mode == "L" else (value, value, value)).save(out, "PNG")
        return out.getvalue()

    columns = {"image": [{"bytes": picture(255)}, {"bytes": picture(0, "L", 5)}, {"bytes": b"nothing"}, None]}
    rows = {"train": {**columns, "label": [0, 1, 0, 1]}, "test": {"image": [picture(51)], "label": [0]}}
    task = open_task(str(write_task(tmp_path / "t", rows, {**SAID, "kind": "image_classification"})))
    train = task.examples("train")
    encoded = task.what.encode(train.take(np.array([0, 1])), vit(), 0)
    batch = task.what.collate(encoded.rows)["pixel_values"]
    assert batch.shape == (2, 1, 8, 8)
    assert batch[0].unique().tolist() == [1.0]
    assert batch[1].unique().tolist() == [-1.0]
    wide = task.what.encode(task.examples("test"), vit(num_channels=3), 0).rows[0]["pixel_values"]
    assert wide.shape == (3, 8, 8)
    np.testing.assert_allclose(wide, (51 / 255 - 0.5) / 0.5, rtol=1e-6)
    for bad in (2, 3):
        with pytest.raises(TaskError, match="not an image"):
            task.what.encode(train.take(np.array([bad])), vit(), 0)


# What is documented, and real tasks


def test_the_documents_name_every_kind_and_metric() -> None:
    text = (Path(__file__).parents[2] / "docs/formats/task.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in text for name in (*KINDS, *METRICS, *Task.model_fields))


@pytest.mark.data
def test_real_tasks_are_whole() -> None:
    folder = os.environ.get("COFUSE_TASKS")
    if not folder:
        pytest.skip("COFUSE_TASKS names no folder of real tasks")
    names = sorted(p.parent.name for p in Path(folder).glob("*/task.json"))
    assert names
    for task in open_suite(tuple(names), folders=(Path(folder),)):
        for split in ("validation", "test"):
            assert len(task.examples(split)) > 50
