"""The workers that a hub starts on its own machine: as many processes as its settings say, started again when they die.

Workers are forked from a process that has loaded what they need and has no threads, so that one that dies is replaced in
milliseconds. Nothing heavy is imported here: threads are fixed before anything else is loaded.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from multiprocessing.context import ForkServerProcess

from ..settings import Settings
from .kinds import KINDS

_LOOK = 0.2  # seconds between looks at whether they live
_SHORT = 5.0  # seconds; who dies sooner is started again only after a pause, doubled each time
_PAUSE, _LONGEST = 0.5, 4.0
_ENDS = 10.0  # seconds that a worker gets beyond `drain`
_LOADED = ("places", "worker", *KINDS.values())  # modules beside this one


@contextlib.contextmanager
def staff(settings: Settings) -> Iterator[None]:
    """Have workers for a block; at its end each finishes its job, or gives it back after `drain` seconds."""
    fix_threads()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([f"{__package__}.{module}" for module in _LOADED])
    enough = threading.Event()
    desks = [
        threading.Thread(target=_desk, args=(settings, enough), name=f"worker {i}", daemon=True)
        for i in range(settings.server.workers)
    ]
    for desk in desks:
        desk.start()
    try:
        yield
    finally:
        enough.set()
        for desk in desks:
            desk.join()


def _desk(settings: Settings, enough: threading.Event) -> None:
    """Keep one worker at work."""
    pause = _PAUSE
    while not enough.is_set():
        worker, began = _started(settings), time.monotonic()
        while worker.is_alive() and not enough.wait(_LOOK):
            pass
        if enough.is_set():
            _end(worker, settings.server.drain + _ENDS)
            return
        pause = min(2 * pause, _LONGEST) if time.monotonic() - began < _SHORT else _PAUSE
        enough.wait(pause if pause > _PAUSE else 0)


def _started(settings: Settings) -> ForkServerProcess:
    worker = multiprocessing.get_context("forkserver").Process(target=_work, args=(settings,), name="cofuse worker")
    worker.start()
    return worker


def _end(worker: ForkServerProcess, seconds: float) -> None:
    worker.terminate()
    worker.join(seconds)
    if worker.is_alive():
        worker.kill()
        worker.join()


def _work(settings: Settings) -> None:
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    from ..hub import Hub
    from ..logs import LOG, set_up
    from .places import HubWork
    from .worker import Worker

    set_up(settings.logs)
    hub = Hub(settings)
    source = HubWork(hub)
    LOG.info("worker started", extra={"worker": source.name, "pid": os.getpid()})
    try:
        Worker(source, drain=settings.server.drain).run()
    finally:
        source.close()
        hub.close()
    LOG.info("worker stopped", extra={"worker": source.name})


def fix_threads() -> None:
    """Have libraries that compute use one thread: what they give must not depend on how many there were."""
    # Read when numpy is loaded, and torch.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"  # noqa: TID251 - written, for libraries that read nothing else


def _end_with(parent: int) -> None:
    """A killed hub leaves its workers behind, but not what they were forked from; they look for that themselves."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)
