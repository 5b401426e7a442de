"""Records of evaluations: one file each, under what was measured, so that none is lost and none is made twice.

    FOLDER/CONTENT/SUITE/ID.json          the record
    FOLDER/CONTENT/SUITE/ID.safetensors   what became of each example

CONTENT is the content id of the model's tensors, which a commit names too, SUITE the beginning of the suite's hash, ID
a hash of all that decides the score. Files appear whole or not at all, the record after its outcomes; nothing is ever
changed. So any number of writers share a folder, a store's `gc` leaves it alone, and a kill loses what was not finished.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from blake3 import blake3
from pydantic import BaseModel, ConfigDict, ValidationError

from ...checkpoint import replace_file
from ...errors import CheckpointError
from ..outcomes import Outcomes

# The folder of a store that holds them.
FOLDER = "evaluations"
_SHORT = 32
_ID = re.compile(r"[0-9a-f]{64}")


class Record(BaseModel):
    """One model on one task by one protocol with one seed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["evaluation"] = "evaluation"
    id: str
    content: str  # of the model's tensors
    files: str  # hash of its configuration and tokenizer
    old: str | None = None  # content of the model that old heads were fitted on
    suite: str  # its name
    suite_hash: str
    measure: str  # hash of task, data, protocol, settings and threads
    task: str
    task_id: str
    protocol: str
    settings: dict[str, Any]
    metric: str
    seed: int
    value: float  # percent, or as the metric says; higher is better
    tested: int
    outcomes: str  # BLAKE3 of the file beside it
    versions: dict[str, str]
    seconds: float


class Records:
    """A folder of records.

    Args:
        folder: made when it is first written to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, content: str, suite: str, suite_hash: str, record_id: str) -> Record | None:
        """The record of finished work, or None.

        A score that another suite already has is written down for this one too, and not computed again.
        """
        place = self._place(content, suite_hash, record_id)
        found = _read(place)
        if found is not None:
            return found
        for other in sorted(self.folder.glob(f"{content}/*/{record_id}.json")):
            made = _read(other)
            if made is not None:
                again = made.model_copy(update={"suite": suite, "suite_hash": suite_hash})
                return self.add(again, Outcomes.load(other.with_suffix(".safetensors")))
        return None

    def add(self, record: Record, outcomes: Outcomes) -> Record:
        """Keep a record and its outcomes; on disk when this returns.

        Raises:
            CheckpointError: they cannot be written.
        """
        place = self._place(record.content, record.suite_hash, record.id)
        beside = place.with_suffix(".safetensors")
        replace(outcomes, model=record.content, suite=record.suite_hash).save(beside)
        kept = record.model_copy(update={"outcomes": _hash(beside)})
        replace_file(place, kept.model_dump_json().encode() + b"\n")
        return kept

    def outcomes(self, record: Record) -> Outcomes:
        """What became of each example of a record.

        Raises:
            CheckpointError: the file is damaged.
        """
        return Outcomes.load(self._place(record.content, record.suite_hash, record.id).with_suffix(".safetensors"))

    def of(self, content: str) -> Iterator[Record]:
        """All records of a model, in a fixed order."""
        if not _ID.fullmatch(content):
            return
        for place in sorted(self.folder.glob(f"{content}/*/*.json")):
            record = _read(place)
            if record is not None:
                yield record

    def _place(self, content: str, suite_hash: str, record_id: str) -> Path:
        return self.folder / content / suite_hash[:_SHORT] / f"{record_id}.json"


def _read(place: Path) -> Record | None:
    """A record with its outcomes whole beside it; what is damaged is as good as not there: it can be made again."""
    try:
        record = Record.model_validate_json(place.read_bytes())
        whole = _hash(place.with_suffix(".safetensors")) == record.outcomes
    except (OSError, ValidationError, CheckpointError):
        return None
    return record if whole and record.id == place.stem else None


def _hash(path: Path) -> str:
    return blake3(path.read_bytes()).hexdigest()
