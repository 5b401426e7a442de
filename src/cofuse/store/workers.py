"""Threads that work on the chunks of all objects of a writer, and a bound on how many chunks wait."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from threading import BoundedSemaphore
from typing import TypeVar

J = TypeVar("J")
R = TypeVar("R")


class Workers:
    """A number of threads, shared by any number of callers; memory follows the threads, not the callers or their jobs.

    >>> workers = Workers(2)
    >>> list(workers.in_order(abs, [-1, 2, -3]))
    [1, 2, 3]
    >>> workers.close()
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._pool = ThreadPoolExecutor(threads)  # starts a thread when there is something to do
        self._slots = BoundedSemaphore(2 * threads)

    def in_order(self, work: Callable[[J], R], jobs: Iterable[J]) -> Iterator[R]:
        """What `work` gives for every job, in the order of the jobs, which are drawn in the caller's thread."""
        if self.threads == 1:
            yield from map(work, jobs)
            return
        waiting: deque[Future[R]] = deque()
        try:
            for job in jobs:
                # Whoever holds a slot never waits for another one, so that all go on.
                while not self._slots.acquire(blocking=not waiting):
                    yield self._first(waiting)
                waiting.append(self._pool.submit(work, job))
            while waiting:
                yield self._first(waiting)
        finally:
            for future in waiting:
                future.cancel()
            wait(waiting)
            for _ in waiting:
                self._slots.release()

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()

    def _first(self, waiting: deque[Future[R]]) -> R:
        result = waiting[0].result()
        waiting.popleft()
        self._slots.release()
        return result
