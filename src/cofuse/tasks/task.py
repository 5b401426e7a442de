"""A task is data, a kind and a metric; a suite is a list of tasks. Both are YAML."""

from __future__ import annotations

import hashlib
import json
import operator
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, ValidationError, field_validator, model_validator

from ..document import Document, PlacedError, nearest, read_document
from ..errors import TaskError
from .examples import Examples
from .kinds import KINDS, Kind
from .metrics import CORRELATIONS, METRICS
from .sources import Source

Split = Literal["train", "validation", "test"]


class Columns(Document):
    """Names that the source gives its columns."""

    text: str = "text"
    text_pair: str = "text_pair"
    image: str = "image"
    label: str = "label"


class Task(Document):
    """One task.

    >>> Task(name="parity", kind="image_classification",
    ...      data={"source": "digits", "groups": [[0, 2, 4], [1, 3, 5]]}).outputs
    2
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]*$")
    kind: str
    data: Source
    labels: tuple[str, ...] = ()
    metric: str = ""
    columns: Columns = Columns()

    @field_validator("kind")
    @classmethod
    def _known_kind(cls, kind: str) -> str:
        if kind not in KINDS:
            raise ValueError(f"a kind of task; {nearest(kind, KINDS)}")
        return kind

    @field_validator("metric")
    @classmethod
    def _known_metric(cls, metric: str) -> str:
        if metric and metric not in METRICS:
            raise ValueError(f"a metric; {nearest(metric, METRICS)}")
        return metric

    @model_validator(mode="before")
    @classmethod
    def _labels_of_groups(cls, data: Any) -> Any:
        """Digits have as many labels as groups; nobody should have to write them twice."""
        if isinstance(data, dict) and not data.get("labels") and isinstance(data.get("data"), dict):
            groups = data["data"].get("groups", range(10) if data["data"].get("source") == "digits" else None)
            if isinstance(groups, list | tuple | range):
                return {
                    **data,
                    "labels": [" ".join(map(str, g)) if isinstance(g, list | tuple) else str(g) for g in groups],
                }
        return data

    @model_validator(mode="after")
    def _labels_where_needed(self) -> Task:
        if not self.what.continuous and (len(self.labels) < 2 or len(set(self.labels)) < len(self.labels)):
            raise ValueError(
                f'"labels" of a {self.kind}: at least two names, all different, in the order of their numbers'
            )
        if self.what.continuous and self.score_name not in CORRELATIONS:
            raise PlacedError(("metric",), f"a metric of values: {' or '.join(sorted(CORRELATIONS))}", self.metric)
        return self

    @property
    def what(self) -> Kind:
        """The row of its kind."""
        return KINDS[self.kind]

    @property
    def outputs(self) -> int:
        """Outputs of its head: the number of labels, or 1."""
        return 1 if self.what.continuous else len(self.labels)

    @property
    def score_name(self) -> str:
        """The metric it is scored by."""
        return self.metric or self.what.metric

    def score(self, predicted: Any, labels: Any) -> float:
        """Score of predictions, in percent."""
        return METRICS[self.score_name](np.asarray(predicted), np.asarray(labels))

    def examples(self, split: Split) -> Examples:
        """All rows of a split.

        Raises:
            TaskError: the data cannot be had, or labels are not among the task's.
        """
        return _examples(self, split, tuple(_columns_of(self).items()), Path.cwd())

    @property
    def id(self) -> str:
        """A hash of what the task is and of its data; scores are comparable when it agrees."""
        return _task_id(self, Path.cwd())


def _columns_of(task: Task) -> dict[str, str]:
    """Our names of the columns to read, with the source's own."""
    wanted = {}
    for column in task.what.columns:
        name = column.removesuffix("?")
        if column.endswith("?") and name not in task.columns.model_fields_set:
            continue
        wanted[name] = getattr(task.columns, name)
    return wanted


@lru_cache(maxsize=256)
def _task_id(task: Task, here: Path) -> str:  # a relative folder is another one elsewhere
    said = task.model_dump(mode="json", exclude={"data": {"folder"}})
    text = json.dumps([said, task.data.fingerprint()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


@lru_cache(maxsize=256)
def _examples(task: Task, split: Split, names: tuple[tuple[str, str], ...], here: Path) -> Examples:
    # The names are part of the key: tasks that differ only in which columns were written out are equal.
    wanted = dict(names)
    columns = task.data.columns(split, (*wanted.values(), task.columns.label))
    where = f"task {task.name}, {split}"
    inputs = {name: columns[theirs] for name, theirs in wanted.items()}
    raw = columns[task.columns.label]
    if any(value is None for value in raw) or any(v is None for n in inputs for v in inputs[n] if n != "image"):
        raise TaskError("an empty cell", where=where, hint="drop the rows without text or label")
    if task.what.continuous:
        try:
            labels = np.asarray(raw, dtype=np.float32)
        except (ValueError, TypeError) as error:
            raise TaskError("a label is not a number", where=where, got=error) from None
        if not np.isfinite(labels).all():
            raise TaskError("a label is not finite", where=where)
    else:
        numbers = {name: i for i, name in enumerate(task.labels)}
        try:
            labels = np.asarray([numbers[v] if isinstance(v, str) else operator.index(v) for v in raw], dtype=np.int64)
        except (KeyError, ValueError, TypeError) as error:
            raise TaskError("a label is not among the task's", where=where, got=error, expected=task.labels) from None
        outside = labels[(labels < 0) | (labels >= len(task.labels))]
        if len(outside):
            raise TaskError(
                "a label is not among the task's",
                where=where,
                got=int(outside[0]),
                expected=f"0 to {len(task.labels) - 1}",
            )
    if not len(labels):
        raise TaskError("the split is empty", where=where)
    return Examples(inputs, labels)


class Suite(Document):
    """A list of tasks: names of task folders, paths of YAML files, or tasks written out."""

    name: str = "suite"
    tasks: tuple[str | Task, ...] = Field(min_length=1)


def open_task(address: str | Task, *, folders: tuple[Path, ...] = ()) -> Task:
    """A task by its address.

    Args:
        address: a task written out; a YAML file; or a folder with `train`, `validation`, `test.parquet` and `task.json`.
        folders: where relative addresses are looked for, in this order; the working folder when empty.

    Raises:
        TaskError: there is no such task; it lists those that are there.
        DocumentError: its YAML is wrong.
    """
    if isinstance(address, Task):
        return address
    if address.startswith("hf:"):
        raise TaskError(
            "a hub data set needs its columns and labels",
            where=address,
            hint="write a task file with `data: {source: hub, id: ..., revision: ...}`",
        )
    for folder in folders or (Path(),):
        path = folder / address
        if path.suffix in (".yaml", ".yml") and path.is_file():
            task = read_document(path, Task)
            return task.model_copy(update={"data": task.data.under(path.parent)})
        if (path / "task.json").is_file():
            return _folder_task(path)
        if (path / "task.yaml").is_file():
            task = read_document(path / "task.yaml", Task)
            return task.model_copy(update={"data": task.data.under(path)})
    known = sorted({p.parent.name for f in folders or (Path(),) if f.is_dir() for p in f.glob("*/task.json")})
    raise TaskError(
        "unknown task",
        where=", ".join(str(f) for f in folders) or "working folder",
        got=address,
        hint=nearest(address, known) if known else "name the folder that holds the tasks (--tasks DIR or COFUSE_TASKS)",
    )


def open_suite(tasks: tuple[str | Task, ...], *, folders: tuple[Path, ...] = ()) -> tuple[Task, ...]:
    """The tasks of a suite, each opened.

    Raises:
        TaskError: a task is unknown, or two have one name.
    """
    opened = tuple(open_task(task, folders=folders) for task in tasks)
    names = [task.name for task in opened]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise TaskError("two tasks have one name", got=", ".join(twice))
    return opened


def _folder_task(folder: Path) -> Task:
    where = folder / "task.json"
    try:
        said: Mapping[str, Any] = json.loads(where.read_text(encoding="utf-8"))
        name, labels, pair = said["name"], said.get("labels", ()), bool(said.get("pair", False))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as error:
        raise TaskError("not a task.json", where=where, got=f"{type(error).__name__}: {error}") from None
    kind = said.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:  # a free description: the shape of the data says what it is
        kind = "pair_classification" if pair else "classification"
    written = {
        "name": name,
        "kind": kind,
        "labels": labels,
        "data": {"source": "parquet", "folder": folder},
        "metric": said.get("metric", ""),
        "columns": {"text_pair": "text_pair"} if pair else {},
    }
    try:
        return Task.model_validate(written)
    except ValidationError as error:
        first = error.errors()[0]
        said_at = ".".join(map(str, first["loc"])) or "task"
        raise TaskError("not a task.json", where=where, got=said_at, expected=first["msg"]) from None
