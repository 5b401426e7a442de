"""A worker: claims jobs, does them, says that it goes on, and hands in what they gave."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Protocol

from ...errors import CofuseError, FullError, HubError, Interrupted
from ...progress import Bar, Progress
from ...store.remotes.http import Unreachable
from ..faults import Conflict, Unavailable
from ..logs import LOG
from .kind import Answer, Workplace
from .kinds import kind_of
from .queue import Claimed

_IDLE = 0.5  # seconds between looks for work
_TROUBLE = 5.0  # seconds until the hub or its database is asked again, when it could not be


class Source(Protocol):
    """Where jobs come from, and where they are done."""

    def claim(self) -> Claimed | None:
        """The next job; None where there is none."""

    def beat(self, job: Claimed, progress: str) -> None:
        """Go on holding it; raises `Conflict` when it is not held any more."""

    def finish(self, job: Claimed, answer: Answer) -> None:
        """Hand in what it gave."""

    def fail(self, job: Claimed, error: str, *, final: bool) -> None:
        """Say that it could not be done."""

    def give_back(self, job: Claimed) -> None:
        """Give it back undone."""

    def place(self, job: Claimed, progress: Progress) -> AbstractContextManager[Workplace]:
        """The workplace of a job."""


class Worker:
    """One worker; `run` in a process of its own, because Python gives signals to main threads only.

    Args:
        source: its jobs.
        drain: seconds that a job under way gets when the worker is told to stop; then it is given back.
    """

    def __init__(self, source: Source, *, drain: float = 30.0) -> None:
        self._source = source
        self._drain = drain
        self._stopping = False

    def run(self) -> None:
        """Work until SIGTERM or SIGINT, or `stop`."""
        with self._listening():
            while not self._stopping:
                try:
                    busy = self.step()
                except KeyboardInterrupt:
                    break
                except Exception as error:  # the hub or its database is away; a job under way is claimed anew
                    LOG.warning("cannot work", extra={"error": _said(error)})
                    self._wait(_TROUBLE)
                    continue
                if not busy:
                    self._wait(_IDLE)

    def stop(self) -> None:
        """Claim nothing more."""
        self._stopping = True

    def step(self) -> bool:
        """Do one job; whether there was one."""
        job = self._source.claim()
        if job is None:
            return False
        LOG.info("job claimed", extra=_row(job))
        began = time.monotonic()
        with _Held(self._source, job) as held:
            try:
                with self._source.place(job, held) as place:
                    answer = kind_of(job.kind).run(place, job.payload)
            except (KeyboardInterrupt, Interrupted):
                held.rest()
                if held.lost:
                    LOG.warning("job lost", extra=_row(job))
                    return True
                self._source.give_back(job)
                LOG.info("job given back", extra=_row(job))
                if not self._stopping:
                    raise KeyboardInterrupt from None
                return True
            except Unavailable as error:
                held.rest()
                self._leave(job, error)
                return True
            except Exception as error:
                held.rest()
                final = isinstance(error, CofuseError) and not _may_pass(error)
                if not isinstance(error, CofuseError):
                    LOG.error("job broke", extra=_row(job) | {"traceback": traceback.format_exc()})
                self._source.fail(job, _said(error), final=final)
                LOG.warning("job failed", extra=_row(job) | {"error": _said(error), "final": final})
                return True
            held.rest()
        try:
            self._source.finish(job, answer)
        except Conflict:
            LOG.warning("job lost", extra=_row(job))
            return True
        except Unavailable as error:
            self._leave(job, error)
            return True
        LOG.info("job done", extra=_row(job) | {"seconds": round(time.monotonic() - began, 3)})
        return True

    def _leave(self, job: Claimed, error: Unavailable) -> None:
        """Give a job back that can go on when something is there again: it is no attempt of it."""
        with contextlib.suppress(Conflict):
            self._source.give_back(job)
        LOG.warning("job given back", extra=_row(job) | {"error": _said(error)})
        self._wait(_TROUBLE)

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self._stopping and time.monotonic() < until:
            time.sleep(min(0.25, seconds))

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        """SIGTERM and SIGINT end the worker after its job, and the job after `drain` seconds, or at the second of them."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def told(signum: int, frame: object) -> None:
            if self._stopping:
                raise KeyboardInterrupt
            self._stopping = True
            signal.setitimer(signal.ITIMER_REAL, max(self._drain, 0.001))

        def now(signum: int, frame: object) -> None:
            raise KeyboardInterrupt

        handlers = {signal.SIGTERM: told, signal.SIGINT: told, signal.SIGALRM: now}
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            for number, handler in before.items():
                signal.signal(number, handler)


class _Held:
    """A job's progress, which also keeps its lease: a thread says every third of it that the work goes on."""

    def __init__(self, source: Source, job: Claimed) -> None:
        self.lost = False
        self._source, self._job = source, job
        self._said = ""
        self._enough = threading.Event()
        self._main = threading.current_thread()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> _Held:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.rest()

    def rest(self) -> None:
        """Beat no more."""
        self._enough.set()
        self._thread.join()

    def bar(self, what: str, total: float, unit: str = "") -> Bar:
        """A bar whose state is shown beside the job."""
        return _Bar(self, what, total)

    def say(self, line: str) -> None:
        """Show a line beside the job."""
        self.tell(line)

    def tell(self, said: str) -> None:
        """Show something at the next beat."""
        if self.lost:
            raise Interrupted("another worker has the job", where=f"job {self._job.id}")
        self._said = said

    def _beat(self) -> None:
        heard = time.monotonic()
        while not self._enough.wait(self._job.lease / 3):
            try:
                self._source.beat(self._job, self._said)
                heard = time.monotonic()
            except Conflict:
                self._lose()
                return
            except Exception as error:  # the hub is away; it may come back before the lease ends
                LOG.warning("cannot say that the work goes on", extra={"job": self._job.id, "error": _said(error)})
                if time.monotonic() - heard > self._job.lease:
                    self._lose()
                    return

    def _lose(self) -> None:
        self.lost = True
        if self._main is threading.main_thread() and callable(signal.getsignal(signal.SIGALRM)):
            # What computes may not look at its progress for long: as Ctrl-C would.
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGALRM)


class _Bar:
    def __init__(self, held: _Held, what: str, total: float) -> None:
        self._held, self._what, self._total, self._done = held, what, total, 0.0

    def advance(self, amount: float = 1) -> None:
        self._done += amount
        self._held.tell(f"{self._what} {100 * self._done / self._total:.0f} %" if self._total else self._what)


def _may_pass(error: CofuseError) -> bool:
    """Whether an error is of the moment: no room, a hub that is away."""
    return isinstance(error, FullError | Unreachable) or type(error) is HubError


def _said(error: BaseException) -> str:
    if isinstance(error, CofuseError):
        return str(error)
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:500]}"


def _row(job: Claimed) -> dict[str, object]:
    return {"job": job.id, "kind": job.kind, "key": job.key, "fence": job.fence, "pid": os.getpid()}
