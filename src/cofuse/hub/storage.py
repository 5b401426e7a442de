"""Repositories kept in a bucket. Their folders on the hub's machine are copies, which may be lost.

    a ref moves      what it reaches is brought to the bucket; the ref moves there; then here
    a copy is opened that is missing, of an earlier run, or whose last move was cut short: it is made like the bucket

So no copy has a ref that the bucket has not, and what a kill leaves in the bucket alone was never acknowledged. Whoever
moves refs of a copy takes turns with the other threads and processes of the machine. See docs/hub.md.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import secrets
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path

from ..errors import CofuseError, CorruptError, FullError, HubError, RefError, StoreError
from ..store import Store
from ..store.places import make_folder
from ..store.remotes import Account
from ..store.remotes.bucket import BucketRemote
from ..store.remotes.s3 import Bucket
from . import settings as told
from .copies import WAIT, Copy, read_text, write_text
from .faults import Unavailable
from .logs import LOG
from .repositories import store_folder

MARK = b"cofuse hub 1\n"  # the key `hub` says what the bucket holds
_REST = 3.0  # seconds for which a bucket that could not be reached is not asked again
_RUN = "storage"  # in the hub's folder: where its copies come from, and its run


class Storage:
    """The bucket of a hub; safe to be used by many threads and processes.

    Args:
        settings: where it is, and who asks.
        data: the hub's folder.
    """

    def __init__(self, settings: told.Storage, data: Path) -> None:
        self._settings = settings
        self._url = (settings.url or "").rstrip("/")
        self._folder = data / "repositories"
        self._stamp = f"{self._url}\n{_run(data)}\n"
        self._rested = 0.0
        self._coming: dict[str, Future[None]] = {}
        self._guard = threading.Lock()

    def check(self) -> None:
        """Make sure that the bucket is there, and can be written; it is marked as a hub's.

        Raises:
            HubError: it holds something else.
            StoreError: there is no such bucket, or no access.
        """
        bucket = Bucket(self._url, account(self._settings))
        bucket.create("hub", MARK)
        found = bucket.get("hub", 0, 1000)
        if found is None or found.data != MARK:
            raise HubError("the bucket holds something else", where=self._url, hint="use a prefix of the hub's own")

    def open(self, key: str) -> tuple[Store, bool]:
        """The store of a repository, and whether its copy is sure to be like the bucket.

        One that is not, because the bucket cannot be reached, can be read; nothing of it is moved before it is.

        Raises:
            Unavailable: it is not here, and the bucket cannot be reached; or it is on its way.
        """
        copy = self._copy(key)
        current = copy.is_current()
        if not current:
            try:
                self._coming_of(copy).result(WAIT)
                current = True
            except TimeoutError:
                if copy.is_copy():
                    raise Unavailable("the repository is being brought back", hint="try again in a minute") from None
            except Unavailable:
                if not copy.is_whole():
                    raise
        return copy.store(), current

    def make(self, key: str) -> None:
        """Keep a repository that has just been made.

        Raises:
            Unavailable: the bucket cannot be reached.
        """
        self._copy(key).bring()

    def remove(self, key: str) -> None:
        """Remove a repository that nobody finds any more; what a kill or an outage leaves is in nobody's way."""
        copy = self._copy(key)
        with contextlib.suppress(CofuseError), self.reached():
            copy.remote.clear()
        copy.lock.unlink(missing_ok=True)

    @contextlib.contextmanager
    def reached(self) -> Iterator[None]:
        """Say of a bucket that does not do as asked that it cannot be reached; for a moment it is not asked again.

        Raises:
            Unavailable: so it is.
        """
        if time.monotonic() < self._rested:
            raise _away()
        try:
            yield
        except (CorruptError, FullError, RefError):
            raise
        except StoreError as error:
            self._rested = time.monotonic() + _REST
            LOG.error("the bucket cannot be used", extra={"error": error.line})
            raise _away() from None

    def _copy(self, key: str) -> Copy:
        remote = BucketRemote(Bucket(f"{self._url}/{key}", account(self._settings)))
        return Copy(remote, store_folder(self._folder, key), self._stamp, self.reached)

    def _coming_of(self, copy: Copy) -> Future[None]:
        """A copy on its way: in a thread of its own, because it may be gigabytes."""
        name = str(copy.root)
        with self._guard:
            coming = self._coming.get(name)
            if coming is None:
                coming = self._coming[name] = Future()
                threading.Thread(target=self._bring, args=(name, copy, coming), daemon=True).start()
            return coming

    def _bring(self, name: str, copy: Copy, coming: Future[None]) -> None:
        try:
            copy.bring(patience=None)
        except BaseException as error:
            coming.set_exception(error)
        else:
            coming.set_result(None)
        finally:
            with self._guard:
                del self._coming[name]


def begin(settings: told.Settings) -> None:
    """Begin a run of a hub: its bucket is there and can be written, and copies of earlier runs are looked at anew.

    Raises:
        HubError: the hub's repositories are in a bucket, and the settings name none.
        StoreError: there is no such bucket, or no access; nothing has been made.
    """
    run = settings.data.absolute() / _RUN
    if settings.storage.url is None:
        if run.exists():
            raise HubError(
                "this hub's repositories are kept in a bucket, and the settings name none",
                where=settings.data,
                expected="storage.url",
                hint=f"to keep them in this folder alone from now on, remove {run.name} in it",
            )
        return
    # In a process of its own, because the processes that answer are forked, which the library's threads do not survive.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as elsewhere:
        elsewhere.submit(_check, settings).result()
    next_run(settings.data.absolute())


def next_run(data: Path) -> None:
    """Have copies that were made up to now looked at anew before they are used."""
    make_folder(data)
    origin = _run(data).partition("\n")[0]
    write_text(data / _RUN, f"{origin}\n{secrets.token_hex(8)}\n")


def account(settings: told.Storage) -> Account:
    """How the server is reached."""
    return Account(**settings.model_dump(exclude={"url"}))


def _check(settings: told.Settings) -> None:
    Storage(settings.storage, settings.data.absolute()).check()


def _run(data: Path) -> str:
    """The origin and the run of a hub; new ones where it has not been run."""
    return read_text(data / _RUN).strip() or f"{secrets.token_hex(8)}\n{secrets.token_hex(8)}"


def _away() -> Unavailable:
    return Unavailable("the hub cannot reach where it keeps its weights", hint="try again in a moment")
