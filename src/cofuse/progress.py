"""How long work tells what it has done: rooms report, the command line draws."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from .errors import Interrupted


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
    """Let Ctrl-C and SIGTERM end work in order: temporary files are removed, then `Interrupted` is raised.

    SIGTERM is left as it is outside the main thread, where Python forbids setting handlers.
    """
    import signal
    import threading

    main = threading.current_thread() is threading.main_thread()

    def stop(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop) if main else None
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted("interrupted", hint="the same command goes on where it was, or starts anew") from None
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)
