"""A kind of work: what a worker does, and what the hub makes of its answer.

`run` sees a workplace and a payload, never the database, so that it can be done on any machine; it depends on its payload
alone, so that doing it twice gives the same answer. `settle` sees the database, never the weights; it is part of the
transaction that marks the job done, so that it happens exactly once. A new kind is one file and one row in `kinds.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy.orm import Session as Transaction

from ...progress import Progress
from ...store import Store
from ..database import Job
from ..hub import Hub

Payload = Mapping[str, Any]
Answer = dict[str, Any]


class Workplace(Protocol):
    """What work may use, wherever it is done."""

    @property
    def progress(self) -> Progress:
        """Told of what is done; keeps the lease alive, and raises `Interrupted` when it was lost."""

    @property
    def tasks(self) -> Path | None:
        """Folder of the tasks that suites name."""

    @property
    def folder(self) -> Path:
        """For what this job writes and nobody needs afterwards; gone when the job ends."""

    @property
    def records(self) -> Path:
        """Folder of evaluation records, which outlives the job: what was measured is not measured again."""

    def store(self, repository: str, *needs: str) -> Store:
        """The store of a repository (`owner/name`), which has these commits.

        On the hub's machine it is the repository's own; elsewhere a copy, to which what is missing is fetched.
        """

    def upload(self, key: str) -> Path:
        """The bytes of a finished upload."""

    def deliver(self, repository: str, commits: Sequence[str], beside: Sequence[str]) -> int:
        """See to it that commits made here, and all that they need, are in the hub's store, before any answer names them.

        Gives the bytes that are yet to be counted as the repository's: what these have and those `beside` have not.
        """


@dataclass(frozen=True, slots=True)
class Kind:
    """A row of `KINDS`.

    Attributes:
        run: does it, on a worker. A `CofuseError` that it raises is final (the work cannot be done); anything else is tried again.
        settle: makes of the answer what it means, on the hub, in the transaction that marks the job done.
        fail: the same for work that cannot be done; `job.error` says why.
        attempts: how often it is tried.
    """

    run: Callable[[Workplace, Payload], Answer]
    settle: Callable[[Hub, Transaction, Job, Answer], None]
    fail: Callable[[Hub, Transaction, Job], None]
    attempts: int = 3
