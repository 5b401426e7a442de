"""Progress bars with time left, where somebody looks at them; plain lines where nobody does."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

# Seconds between lines where the output is a file.
_QUIET = 30.0


@contextmanager
def shown() -> Iterator[_Drawn | _Lines]:
    """Progress for the length of a command, on standard error."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines(console)
        return
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        _Bytes(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        speed_estimate_period=600,
    ) as progress:
        yield _Drawn(progress, console)


class _Bytes(ProgressColumn):
    """Sizes, for bars that count bytes."""

    def render(self, task: Task) -> Text:
        return DownloadColumn(binary_units=True).render(task) if task.fields.get("unit") == "B" else Text("")


class _DrawnBar:
    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task

    def advance(self, amount: float = 1) -> None:
        self._progress.advance(self._task, amount)


class _Drawn:
    def __init__(self, progress: Progress, console: Console) -> None:
        self._progress, self._console = progress, console

    def bar(self, what: str, total: float, unit: str = "") -> _DrawnBar:
        return _DrawnBar(self._progress, self._progress.add_task(what, total=total, unit=unit))

    def say(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)


class _LineBar:
    def __init__(self, console: Console, what: str, total: float) -> None:
        self._console, self._what, self._total = console, what, total
        self._done = 0.0
        self._began = self._said = time.monotonic()
        self._lock = threading.Lock()

    def advance(self, amount: float = 1) -> None:
        with self._lock:
            self._done += amount
            now = time.monotonic()
            if now - self._said < _QUIET or not self._done:
                return
            self._said = now
            left = (now - self._began) * (self._total - self._done) / self._done
        share = 100 * self._done / self._total if self._total else 100.0
        self._console.print(
            f"{self._what}: {share:.0f} %, {_clock(left)} left", highlight=False, markup=False, soft_wrap=True
        )


class _Lines:
    def __init__(self, console: Console) -> None:
        self._console = console

    def bar(self, what: str, total: float, unit: str = "") -> _LineBar:
        return _LineBar(self._console, what, total)

    def say(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(max(0.0, seconds)), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
