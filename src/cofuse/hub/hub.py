"""A hub that is open: its settings, its database, its stores."""

from __future__ import annotations

import math
import shutil
import threading
import time
from collections import OrderedDict

from ..errors import HubError
from ..store import Store
from .access.limits import Rate
from .access.visitor import Visitor, Visitors
from .database import Database, Repository
from .files import Files
from .metrics import Metrics
from .remembered import Remembered
from .repositories import Seen, find, store_folder
from .settings import Settings
from .storage import Storage
from .tally import Tally

_OPEN = 256  # stores that are kept open
_LOOK = 1.0  # seconds between looks for what is due


class Hub:
    """What the routes, the pages and the command line share; safe to be used by many threads.

    Args:
        settings: see `Settings`. The folder is made where there is none.

    >>> import tempfile
    >>> from pathlib import Path
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     hub = Hub(Settings(data=Path(folder)))
    ...     hub.database.migrate()
    ...     hub.close()
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        data = settings.data.absolute()
        self.repositories, self.uploads = data / "repositories", data / "uploads"
        self.records, self.work = data / "records", data / "work"
        try:
            for folder in (self.repositories, self.uploads, self.records, self.work):
                folder.mkdir(parents=True, exist_ok=True)
            data.chmod(0o700)  # what is private here is private on the machine
        except OSError as error:
            raise HubError("cannot use the hub's folder", where=settings.data, got=error.strerror) from None
        self.storage = Storage(settings.storage, data) if settings.storage.url else None
        self.files = Files(data / "files", settings.limits.cache)
        self.database = Database(settings.database_url)
        self.visitors = Visitors(self.database)
        self.tally = Tally(self.database)
        self.metrics = Metrics(self.database)
        self.requests = Rate(settings.limits.requests)
        self.failures = Rate(settings.limits.failures)
        self.swept = 0.0  # when what is left over was last looked for
        self.looked = -math.inf  # when what is due was last looked for
        self._seen = Remembered[Seen](lambda: self.database.changes)
        self._stores: OrderedDict[str, Store] = OrderedDict()
        self._guard = threading.Lock()

    def store(self, repository: Repository) -> Store:
        """The store of a repository.

        Raises:
            Unavailable: it is in a bucket, which cannot be reached.
        """
        with self._guard:
            found = self._stores.get(repository.key)
            if found is not None:
                self._stores.move_to_end(repository.key)
                return found
        found, lasting = self._opened(repository.key)
        with self._guard:
            if lasting:
                found = self._stores.setdefault(repository.key, found)
            while len(self._stores) > _OPEN:
                self._stores.popitem(last=False)
        return found

    def _opened(self, key: str) -> tuple[Store, bool]:
        if self.storage is not None:
            return self.storage.open(key)
        return Store.open(store_folder(self.repositories, key)), True

    def keep(self, repository: Repository) -> None:
        """Keep a repository that has just been made where all are kept; for the transaction that makes it.

        Raises:
            Unavailable: a bucket, which cannot be reached.
        """
        if self.storage is not None:
            self.storage.make(repository.key)

    def forget(self, key: str) -> None:
        """Remove the store of a repository that nobody finds any more."""
        with self._guard:
            self._stores.pop(key, None)
        shutil.rmtree(store_folder(self.repositories, key), ignore_errors=True)
        if self.storage is not None:
            self.storage.remove(key)

    def look(self, visitor: Visitor, owner: str, name: str) -> Seen:
        """A repository that a visitor may see, remembered for a moment: not for what is about to be changed.

        Raises:
            NoRepository: see `repositories.find`.
        """

        def ask() -> Seen:
            with self.database.reading() as transaction:
                return find(transaction, visitor, owner, name)

        return self._seen.get((visitor, owner, name), ask)

    def known(self, visitor: Visitor, owner: str, name: str) -> Seen | None:
        """The same, if it is remembered."""
        found = self._seen.known((visitor, owner, name))
        return None if found is None else found[0]

    def may_look(self) -> bool:
        """Whether it is time to look for what is due: once a second in a process, however many workers ask."""
        now = time.monotonic()
        due = now > self.looked + _LOOK
        self.looked = now if due else self.looked
        return due

    def close(self) -> None:
        """Give everything back."""
        self.tally.write()
        self.database.close()
