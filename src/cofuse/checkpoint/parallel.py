"""Threads over many small jobs, with a bound on how many wait: memory follows the threads, not the jobs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

J = TypeVar("J")


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
