"""Threads over many small jobs, with a bound on how many wait: memory follows the threads, not the jobs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import cache
from typing import Any, TypeVar

J = TypeVar("J")
R = TypeVar("R")


class _OneThread:
    """The sums of a BLAS depend on its number of threads: one, while anybody is inside. Ours work side by side."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._limit: Any = None

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._limit = _blas().limit(limits=1, user_api="blas")
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0 and self._limit is not None:
                self._limit.restore_original_limits()


@cache
def _blas() -> Any:
    """What sets the threads of numpy's BLAS. Finding it goes over all libraries of the process, so it is found once."""
    import numpy  # noqa: F401 - a BLAS that is loaded later is not found
    from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]  # needed by few

    return ThreadpoolController()


ONE_BLAS_THREAD = _OneThread()


def for_each(work: Callable[[J], None], jobs: Iterable[J], threads: int) -> None:
    """Call `work` on every job, in up to `threads` threads; the first failure stops the rest and is raised.

    >>> done = []
    >>> for_each(done.append, range(3), threads=1)
    >>> done
    [0, 1, 2]
    """
    if threads <= 1:
        for job in jobs:
            work(job)
        return
    with ThreadPoolExecutor(threads) as pool:
        running: set[Future[None]] = set()
        try:
            for job in jobs:
                running.add(pool.submit(work, job))
                if len(running) >= 2 * threads:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        future.result()
            for future in running:
                future.result()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def map_each(work: Callable[[J], R], jobs: Sequence[J], threads: int) -> list[R]:
    """What `work` gives for every job, in the order of the jobs, however many threads work on them.

    >>> map_each(abs, [-1, 2, -3], threads=2)
    [1, 2, 3]
    """
    if threads <= 1 or len(jobs) <= 1:
        return [work(job) for job in jobs]
    found: list[R | None] = [None] * len(jobs)

    def keep(numbered: tuple[int, J]) -> None:
        found[numbered[0]] = work(numbered[1])

    for_each(keep, enumerate(jobs), threads)
    return found  # type: ignore[return-value]  # each place was filled, or for_each raised
