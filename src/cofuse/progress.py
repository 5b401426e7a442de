"""How long work tells what it has done: rooms report, the command line draws."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Bar(Protocol):
    """One running piece of work."""

    def advance(self, amount: float = 1) -> None:
        """Say that `amount` more of the total is done."""


class Progress(Protocol):
    """Where bars are shown."""

    def bar(self, what: str, total: float, unit: str = "") -> Bar:
        """Open a bar of `total` units; `unit` is `B` for bytes or a word."""

    def say(self, line: str) -> None:
        """Print one line above the bars."""


class _SilentBar:
    def advance(self, amount: float = 1) -> None:
        pass


class Silent:
    """Progress that nobody watches: the default in the library."""

    def bar(self, what: str, total: float, unit: str = "") -> Bar:
        """A bar that shows nothing."""
        return _SilentBar()

    def say(self, line: str) -> None:
        """Drop the line."""


SILENT: Progress = Silent()


@contextmanager
def interruptible() -> Iterator[None]:
    """Turn SIGTERM into KeyboardInterrupt, so that temporary files are removed on both.

    Does nothing outside the main thread, where Python forbids setting handlers.
    """
    import signal
    import threading

    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
