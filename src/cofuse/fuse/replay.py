"""A fuse made again from its record, and how it compares with what is there."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from ..checkpoint import BLOCK_BYTES, Checkpoint, Hashed, content_id_of, file_id, for_each
from ..progress import SILENT, Progress
from .card import CARD
from .record import RECORD, InputRecord, Record, input_record


@dataclass(frozen=True, slots=True)
class Changed:
    """An input that is not what it was."""

    address: str
    recorded: InputRecord
    found: InputRecord


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a fuse made again compares.

    Attributes:
        content: the content id of what was made again.
        recorded: what the record says.
        found: what is there.
        inputs: those that changed since.
        tensors: names whose ids differ between what is there and what was made again, or that one of them lacks.
        files: small files that differ between what is there and what was made again.
    """

    content: str
    recorded: str
    found: str
    inputs: tuple[Changed, ...]
    tensors: tuple[str, ...]
    files: tuple[str, ...]

    @property
    def same(self) -> bool:
        """Whether what was made again is what is there and what the record says."""
        return self.content == self.recorded == self.found and not self.files

    @property
    def altered(self) -> bool:
        """Whether what is there is not what was recorded."""
        return self.found != self.recorded


def read_through(checkpoint: Checkpoint, threads: int | None = None, progress: Progress = SILENT) -> None:
    """Read every tensor once, block by block, and keep nothing."""
    names = checkpoint.names()
    bar = progress.bar("making it again", sum(checkpoint.spec(name).nbytes for name in names), "B")

    def read(job: tuple[str, int, int]) -> None:
        checkpoint.read_bytes(*job)
        bar.advance(job[2] - job[1])

    jobs = ((name, start, stop) for name in names for start, stop in checkpoint.blocks(name, BLOCK_BYTES))
    for_each(read, jobs, threads or os.cpu_count() or 1)


def compare(
    record: Record, inputs: Mapping[str, Hashed], again: Hashed, there: Checkpoint, threads: int | None = None
) -> Verdict:
    """Compare what was made again with what is there and with what was recorded.

    Args:
        record: of what is there.
        inputs: by their addresses, after `again` was read.
        again: the fuse of the recorded recipe, read once and whole.
        there: the checkpoint that carries the record.
        threads: how many read what is there; the processor's number when None.
    """
    found = {one.address: input_record(one.address, inputs[one.address]) for one in record.inputs}
    made, kept = again.tensor_ids(), Hashed(there).tensor_ids(threads=threads)
    own = {name: file_id(data) for name, data in again.files.items() if name not in (RECORD, CARD)}
    # Files that came later (a licence, an evaluation) are nobody's mistake; the record's must be there as they were.
    named = sorted(own.keys() | record.output.files.keys())
    here = {name: file_id(there.files[name]) for name in named if name in there.files}
    return Verdict(
        content=content_id_of(made),
        recorded=record.output.content,
        found=content_id_of(kept),
        inputs=tuple(
            Changed(one.address, one, found[one.address]) for one in record.inputs if found[one.address] != one
        ),
        tensors=tuple(name for name in dict.fromkeys([*made, *kept]) if made.get(name) != kept.get(name)),
        files=tuple(name for name in named if here.get(name) != own.get(name)),
    )
