"""Where work is done on the hub's own machine: on its folder and its database."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import select

from ...progress import Progress
from ...store import Store
from ...store.trees import load_tree
from ..database import Account, Repository
from ..faults import NoRepository
from ..hub import Hub
from ..rounds.opening import due
from . import queue
from .kind import Answer, Workplace
from .queue import Claimed

_ALIVE = "alive"  # a file that its worker holds locked for as long as it lives


@dataclass(frozen=True)
class HubPlace:
    """A workplace on the hub's machine; see `Workplace`."""

    hub: Hub
    progress: Progress
    folder: Path

    @property
    def tasks(self) -> Path | None:
        """As the hub's settings say."""
        return self.hub.settings.tasks

    @property
    def records(self) -> Path:
        """The hub's own."""
        return self.hub.records

    def store(self, repository: str, *needs: str) -> Store:
        """The repository's own, which has what it has."""
        owner, _, name = repository.partition("/")
        query = select(Repository).join(Account).where(Account.name == owner, Repository.name == name)
        with self.hub.database.reading() as look:
            found = look.scalar(query)
        if found is None:
            raise NoRepository("no such repository", got=repository)
        return self.hub.store(found)

    def upload(self, key: str) -> Path:
        """Its file."""
        return self.hub.uploads / key

    def deliver(self, repository: str, commits: Sequence[str], beside: Sequence[str]) -> int:
        """They are there; nobody has counted them."""
        store = self.store(repository)
        store.refs.keep(commits)
        new = _parts(store, commits) - _parts(store, beside)
        return sum(store.objects.path(part).stat().st_size for part in new)


class HubWork:
    """The hub's jobs for a worker on its machine; see `worker.Source`. Closed, or dead, it holds nothing.

    Args:
        hub: whose.
    """

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self.name, self._folder, self._lock = _settle_in(hub.work)

    def claim(self) -> Claimed | None:
        """The next job; rounds that are due are begun first."""
        if self._hub.may_look():
            clear_away(self._hub)
            due(self._hub)
        return queue.claim(self._hub, self.name)

    def beat(self, job: Claimed, progress: str) -> None:
        """See `queue.beat`."""
        queue.beat(self._hub, job.id, job.fence, progress)

    def finish(self, job: Claimed, answer: Answer) -> None:
        """See `queue.finish`."""
        queue.finish(self._hub, job.id, job.fence, answer)

    def fail(self, job: Claimed, error: str, *, final: bool) -> None:
        """See `queue.fail`; where things are on this machine is nobody's business."""
        folder = str(self._hub.repositories.parent)
        queue.fail(self._hub, job.id, job.fence, error.replace(folder, "hub"), final=final)

    def give_back(self, job: Claimed) -> None:
        """See `queue.give_back`."""
        queue.give_back(self._hub, job.id, job.fence)

    @contextlib.contextmanager
    def place(self, job: Claimed, progress: Progress) -> Iterator[Workplace]:
        """The workplace of a job."""
        folder = self._folder / f"job-{job.id}-{job.fence}"
        folder.mkdir(mode=0o700)
        try:
            yield HubPlace(self._hub, progress, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        """Leave."""
        shutil.rmtree(self._folder, ignore_errors=True)
        os.close(self._lock)


def _parts(store: Store, commits: Sequence[str]) -> set[str]:
    """Commits and the objects of their trees."""
    trees = [store.tree(commit) for commit in commits]
    return {*commits, *trees}.union(*(load_tree(store.objects, tree).objects() for tree in trees))


def clear_away(hub: Hub) -> None:
    """Take the jobs of workers of this machine that have died from them at once, without waiting for their leases."""
    for folder in hub.work.iterdir():
        if folder.name.startswith("."):
            continue
        with contextlib.suppress(FileNotFoundError, BlockingIOError, NotADirectoryError):
            held = os.open(folder / _ALIVE, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)  # its worker would hold it
                queue.release(hub, f"here {folder.name}")
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(held)


def _settle_in(work: Path) -> tuple[str, Path, int]:
    """A name, a folder of that name, and its lock; it appears when it is locked."""
    name = secrets.token_hex(8)
    made, folder = work / f".{name}", work / name
    made.mkdir(mode=0o700)
    lock = os.open(made / _ALIVE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    made.rename(folder)
    return f"here {name}", folder, lock
