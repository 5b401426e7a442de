"""Worker processes that do pieces of work, and die with the process that started them.

Nothing heavy is imported here: a worker watches its parent, and fixes its threads, before anything else is loaded.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
import warnings
from concurrent.futures import CancelledError, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from importlib import import_module
from types import TracebackType
from typing import TYPE_CHECKING, ParamSpec, Self, TypeVar

from .errors import CofuseError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Future

P = ParamSpec("P")
R = TypeVar("R")

# What a worker takes beside the model it trains: Python, torch and transformers.
WORKER_BYTES = 1_000_000_000

# Ctrl-C and `timeout` reach the whole group; the parent alone decides what happens then.
_STOPS = (signal.SIGINT, signal.SIGTERM)


def default_workers(threads: int, model_bytes: int) -> int:
    """As many workers as cores and memory allow.

    Args:
        threads: that each uses.
        model_bytes: size of the model; training holds weights, gradients, two moments and activations.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    by_cores = max(1, cores // threads)
    free = _free_memory()
    by_memory = by_cores if free is None else max(1, int(0.8 * free // (WORKER_BYTES + 8 * model_bytes)))
    return min(by_cores, by_memory)


def _free_memory() -> int | None:
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


class Workers:
    """A pool of processes; the result of a piece of work does not depend on how many there are.

    Args:
        count: processes.
        threads: that each uses; part of the result, because sums depend on it.
        imports: modules that work needs, which workers may load before they are asked.
        option: of the command line, by which the user gives the number of processes.
        died: what is raised when a worker is gone.
    """

    def __init__(
        self,
        count: int,
        threads: int,
        *,
        imports: Sequence[str] = (),
        option: str = "--jobs",
        died: type[CofuseError] = CofuseError,
    ) -> None:
        self.count = count
        self._imports = tuple(imports)
        self._option = option
        self._died = died
        self._lock = threading.Lock()
        self._killed = False
        self._pool = ProcessPoolExecutor(
            count,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_begin,
            initargs=(os.getpid(), threads),
        )

    def start(self) -> None:
        """Start all processes and have them import what work needs; not waited for."""
        with contextlib.suppress(BrokenProcessPool):  # the first piece of work tells of it
            for _ in range(self.count):
                self._submit(_import_all, self._imports)

    def do(self, work: Callable[[], R]) -> R:
        """Have a worker do something, and wait for it.

        Raises:
            CofuseError: the worker died (out of memory, most often); of the class `died`.
        """
        return self.wait(self.submit(work))

    def submit(self, work: Callable[[], R]) -> Future[R]:
        """Have a worker do something that can be pickled; not waited for."""
        try:
            return self._submit(_do, work)
        except BrokenProcessPool:
            raise self._death() from None

    def wait(self, future: Future[R]) -> R:
        """What a piece of work gave; it raises what the work raised.

        Raises:
            CofuseError: the worker died; of the class `died`.
        """
        try:
            return future.result()
        except (BrokenProcessPool, CancelledError):
            raise self._death() from None

    def _death(self) -> CofuseError:
        return self._died(
            "a worker process died",
            expected="enough memory for every worker",
            hint=f"run the same command again, with fewer workers ({self._option} 1)",
        )

    def _submit(self, function: Callable[P, R], *arguments: P.args, **named: P.kwargs) -> Future[R]:
        with self._lock:
            if self._killed:  # a pool that has no processes yet would start them
                raise BrokenProcessPool
            # The first piece of work starts the processes. They inherit the mask, so that a Ctrl-C while they still
            # import does not make each of them print a traceback.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
            try:
                return self._pool.submit(function, *arguments, **named)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.kill()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def kill(self) -> None:
        """End the workers at once; finished work is recorded already, the rest is done again."""
        with self._lock:
            self._killed = True
            for process in list((self._pool._processes or {}).values()):
                with contextlib.suppress(OSError, ValueError):
                    process.kill()


def _begin(parent: int, threads: int) -> None:
    for stop in _STOPS:
        signal.signal(stop, signal.SIG_IGN)
    threading.Thread(target=_die_with, args=(parent,), daemon=True).start()
    warnings.filterwarnings("ignore")
    # Read when numpy is loaded, through which scikit-learn computes: else each worker takes every core.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(threads)  # noqa: TID251 - written, for libraries that read nothing else
    import torch

    torch.set_num_threads(threads)


def _die_with(parent: int) -> None:
    """A killed parent leaves its workers waiting for work for ever; they look for it themselves."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _import_all(modules: Sequence[str]) -> None:
    # An error here stays in a future that nobody looks at; the first piece of work tells of it.
    for module in modules:
        import_module(module)


def _do(work: Callable[[], R]) -> R:
    return work()
