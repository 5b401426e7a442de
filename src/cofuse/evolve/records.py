"""The records of a run: typed, one a line in `records.jsonl`, each written once and never changed.

A record is the proof that a piece of work is finished. Its `id` is a hash of everything that decides the result, so a
run that is started again knows what it need not do; work whose inputs changed has another id.
"""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    TypeAdapter,
    ValidationError,
    model_serializer,
)

from ..canonical import canonical
from ..checkpoint import sync_folder
from ..errors import StudyError


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str


class BegunRecord(_Record):
    """The study as it was started, and with what."""

    kind: Literal["begun"] = "begun"
    study: dict[str, Any]
    versions: dict[str, str]


class ModelRecord(_Record):
    """A model that is measured: a name, and the commit that holds it."""

    kind: Literal["model"] = "model"
    name: str
    seed: int
    commit: str
    tree: str
    content: str


class ContributionRecord(_Record):
    """One finetuning that was finished, and where its weights were written."""

    kind: Literal["contribution"] = "contribution"
    folder: str  # below the run's folder
    task: str
    examples: int
    steps: int
    validation: float | None
    seconds: float
    content: str | None = None  # of what was written, by which damage is found; runs begun long ago do not say


class Accepted(BaseModel):
    """A contribution that was fused, with what the screen saw."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    who: str
    content: str
    norm: float  # of its change, relative to the base's norm
    cosine: float  # of its change with the mean change of the others; 0 when it is alone
    predicted: float | None = None  # KL in nats an example that its change is predicted to make, where that is screened

    @model_serializer(mode="wrap")
    def _known(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without what is not known: commits hash what their records say."""
        return {key: value for key, value in write(self).items() if value is not None}


class Refused(BaseModel):
    """A contribution that was not fused, and why."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    who: str
    reason: str


class RoundRecord(_Record):
    """One round: who was fused, who was refused, and the commit it made."""

    kind: Literal["round"] = "round"
    seed: int
    number: int
    commit: str
    tree: str
    content: str
    accepted: tuple[Accepted, ...]
    refused: tuple[Refused, ...]


class ScoreRecord(_Record):
    """Scores of one model on one task by one protocol; one value a draw, in percent."""

    kind: Literal["score"] = "score"
    content: str
    seed: int
    suite: Literal["seen", "unseen"]
    task: str
    protocol: str
    metric: str
    values: tuple[float, ...]
    tested: int
    seconds: float


Record = Annotated[
    BegunRecord | ModelRecord | ContributionRecord | RoundRecord | ScoreRecord, Field(discriminator="kind")
]
_ADAPTER: TypeAdapter[Any] = TypeAdapter(Record)


def job_id(kind: str, **inputs: Any) -> str:
    """The id of a piece of work: SHA-256 over the canonical JSON of what decides its result."""
    return hashlib.sha256(canonical([kind, inputs])).hexdigest()


class Journal:
    """`records.jsonl`: appended and fsynced; a last line that a kill cut short is dropped when it is opened.

    Raises:
        StudyError: a line that is not the last one is damaged, or the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._records: dict[str, Any] = {}
        self._size = 0  # of the whole lines
        for record, end in read_lines(path):
            self._records[record.id] = record
            self._size = end
        with writable(path):
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            os.ftruncate(self._fd, self._size)
            sync_folder(path.parent)

    def get(self, record_id: str) -> Any | None:
        """The record of finished work, or None."""
        with self._lock:
            return self._records.get(record_id)

    def add(self, record: Any) -> None:
        """Append a record; on disk when this returns. One that is already there is left as it is."""
        line = record.model_dump_json().encode() + b"\n"
        with self._lock:
            if record.id in self._records:
                return
            with writable(self.path):
                try:
                    done = 0
                    while done < len(line):
                        done += os.pwrite(self._fd, line[done:], self._size + done)
                    os.fsync(self._fd)
                except OSError:
                    os.ftruncate(self._fd, self._size)  # no half line before the next record
                    raise
            self._size += len(line)
            self._records[record.id] = record

    def all(self) -> tuple[Any, ...]:
        """Every record, in the order they were written."""
        with self._lock:
            return tuple(self._records.values())

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


@contextmanager
def writable(path: Path) -> Iterator[None]:
    """Raise operating-system errors of the block as StudyError that names `path`."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise StudyError(
            "cannot write the run's records",
            where=path,
            got=error.strerror or str(error),
            expected="room and permission",
            hint="free some space and run the same command again" if full else None,
        ) from None


def read_records(path: Path) -> tuple[Any, ...]:
    """The records of a run that may still be going on.

    Raises:
        StudyError: there are none, or a line is damaged.
    """
    if not path.is_file():
        raise StudyError("no records", where=path, hint="is this the folder of a run?")
    return tuple({record.id: record for record, _ in read_lines(path)}.values())


def read_lines(path: Path) -> Iterator[tuple[Any, int]]:
    """Each whole record of a file, and the byte at which its line ends."""
    if not path.is_file():
        return
    data = path.read_bytes()
    at = number = 0
    while (end := data.find(b"\n", at)) >= 0:
        number += 1
        try:
            yield _ADAPTER.validate_json(data[at:end]), end + 1
        except ValidationError as error:
            raise StudyError("a damaged record", where=f"{path}:{number}", got=str(error.errors()[0]["msg"])) from None
        at = end + 1


def by_kind(records: tuple[Any, ...], kind: str) -> list[Any]:
    """Records of one kind, in order."""
    return [record for record in records if record.kind == kind]
