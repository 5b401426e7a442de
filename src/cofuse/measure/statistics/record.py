"""Statistics of a model as a checkpoint: a Fisher diagonal, Gram matrices; with what they were taken from.

A statistics checkpoint has tensors under the model's names, and a record beside them, `statistics.json`, that binds them
to the content id of the model. Written down in docs/formats/statistics.md.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidationError

from ..._version import __version__
from ...checkpoint import Checkpoint, Memory, content_id
from ...document import Document
from ...errors import TaskError

if TYPE_CHECKING:
    from ...tasks import Examples
    from ..subject import Subject

RECORD = "statistics.json"
StatisticsKind = Literal["fisher", "gram"]


class StatisticsRecord(Document):
    """What statistics are and what they were taken from.

    Attributes:
        statistics: the format's number.
        kind: what they are.
        estimator: of a Fisher, whose labels: `expected`, `sampled`, `empirical`; empty else.
        model: content id of the model they are of.
        task: name of the task whose data they are from.
        task_id: its id, which hashes its data; None where they are from no task.
        split: of the task's data.
        examples: how many examples they are a mean over.
        seed: of drawn labels and examples.
        head: what stood on the body: `probe`, `random`, `own`, `trained`.
        settings: what else decides the numbers: longest sequence, pooling, the head's seed.
        precision: of the forward and backward passes.
        error: of that precision, relative to float32, where it was measured.
        fallback: tensors that no rule covered and that took a slower way, just as exact.
        versions: of what decides the last bits.
    """

    statistics: Literal[1] = 1
    kind: StatisticsKind
    estimator: str = ""
    model: str = Field(pattern=r"^[0-9a-f]{64}$")
    task: str = ""
    task_id: str | None = None
    split: str = ""
    examples: int = Field(gt=0)
    seed: int = 0
    head: str = ""
    settings: dict[str, int | float | str] = Field(default_factory=dict)
    precision: str = "fp32"
    error: float | None = None
    fallback: tuple[str, ...] = ()
    versions: dict[str, str] = Field(default_factory=dict)


def with_record(tensors: Mapping[str, Any], record: StatisticsRecord) -> Memory:
    """Tensors and their record as a checkpoint; names that share one tensor stay tied."""
    text = json.dumps(record.model_dump(mode="json"), sort_keys=True, indent=2) + "\n"
    return Memory(tensors, files={RECORD: text.encode()}, where=f"{record.kind} of {record.model[:12]}")


def statistics_of(
    subject: Subject,
    tensors: Mapping[str, Any],
    examples: Examples,
    *,
    kind: StatisticsKind,
    split: str,
    seed: int,
    **more: Any,
) -> Memory:
    """What was measured of a subject on examples, as a checkpoint that says so.

    Args:
        subject: whose record says what stood on which model.
        tensors: the numbers, under the model's names.
        examples: what they are a mean over.
        kind: what they are.
        split: where the examples are from.
        seed: of drawn labels and examples.
        more: fields of the record that only this kind has.
    """
    said = dict(subject.record)
    record = StatisticsRecord(
        kind=kind,
        model=content_id(subject.checkpoint),
        task=said.pop("task", ""),
        task_id=said.pop("task_id", None),
        split=split,
        examples=len(examples),
        seed=seed,
        head=said.pop("head", ""),
        settings={("head_seed" if name == "seed" else name): value for name, value in said.items()},
        versions=_versions(),
        **more,
    )
    return with_record(tensors, record)


def _versions() -> dict[str, str]:
    import torch

    return {"cofuse": __version__, "torch": str(torch.__version__)}


def read_record(statistics: Checkpoint) -> StatisticsRecord:
    """The record of a statistics checkpoint.

    Raises:
        TaskError: it has none, or not one of this format.
    """
    raw = statistics.files.get(RECORD)
    if raw is None:
        raise TaskError("not statistics", where=statistics.where, got=f"no {RECORD}", hint="cofuse fisher makes some")
    try:
        return StatisticsRecord.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = f"{statistics.where}: {RECORD}"
        said = ".".join(map(str, first["loc"])) or "not JSON"
        raise TaskError("not a record of statistics", where=where, got=said, expected=first["msg"]) from None


def open_statistics(
    statistics: Checkpoint, kind: StatisticsKind | None = None, *, model: Checkpoint | str | None = None
) -> StatisticsRecord:
    """Check what statistics are and whose.

    Args:
        statistics: the checkpoint.
        kind: what they should be; anything when None.
        model: the model they should be of, or its content id; anybody's when None.

    Returns:
        Their record.

    Raises:
        TaskError: they are no statistics, or others than wanted.
    """
    record = read_record(statistics)
    if kind is not None and record.kind != kind:
        raise TaskError("statistics of another kind", where=statistics.where, got=record.kind, expected=kind)
    if model is not None:
        _check_same(record, statistics, content_id(model) if isinstance(model, Checkpoint) else model)
    return record


def check_model(statistics: Checkpoint, model: Checkpoint, kind: StatisticsKind = "fisher") -> None:
    """Refuse what are no statistics of a model: of another model or kind, or a checkpoint that says neither.

    Raises:
        TaskError: they are of another model or kind, or their record is missing or damaged.
    """
    open_statistics(statistics, kind, model=model)


def _check_same(record: StatisticsRecord, statistics: Checkpoint, wanted: str) -> None:
    if record.model != wanted:
        raise TaskError(
            "the statistics belong to another model",
            where=statistics.where,
            got=f"content id {record.model}",
            expected=f"content id {wanted}",
            hint="take statistics of this model",
        )
