"""How often models are downloaded: counted in memory, and written down now and then, because a request must not wait for it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter

from sqlalchemy import update
from sqlalchemy.exc import SQLAlchemyError

from .database import Database, Repository

EVERY = 10.0  # seconds; what is younger is lost when the hub ends


class Tally:
    """Downloads of one hub; safe to be used by many threads.

    Args:
        database: where they are written down.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._counts: Counter[int] = Counter()
        self._guard = threading.Lock()
        self._written = time.monotonic()

    def add(self, repository: int) -> None:
        """Count one."""
        with self._guard:
            self._counts[repository] += 1
            if time.monotonic() < self._written + EVERY:
                return
            self._written = time.monotonic()
        threading.Thread(target=self.write, daemon=True).start()

    def write(self) -> None:
        """Write down what was counted."""
        with self._guard:
            counts, self._counts = self._counts, Counter()
        if not counts:
            return
        # Nobody waits for it, so nobody can be told that the database is busy, or closed.
        with contextlib.suppress(SQLAlchemyError), self._database.writing() as transaction:
            for repository, more in sorted(counts.items()):
                row = update(Repository).where(Repository.id == repository)
                transaction.execute(row.values(downloads=Repository.downloads + more))
