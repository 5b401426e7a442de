"""The worker processes of a run: those of `cofuse.workers`, with what a study's work imports and how it fails."""

from __future__ import annotations

from ..errors import StudyError
from ..workers import WORKER_BYTES, default_workers
from ..workers import Workers as _Workers

__all__ = ["WORKER_BYTES", "Workers", "default_workers"]


class Workers(_Workers):
    """A pool of processes for the pieces of work of `work.py`; StudyError when one of them dies."""

    def __init__(self, count: int, threads: int) -> None:
        # The Trainer's module and not transformers alone, which loads its parts when they are asked for.
        imports = ("transformers.trainer", "cofuse.evolve.work")
        super().__init__(count, threads, imports=imports, option="--workers", died=StudyError)
