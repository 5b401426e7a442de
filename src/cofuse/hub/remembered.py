"""Answers of the database that are asked for with every request, kept for a moment."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

V = TypeVar("V")
SECONDS = 0.5  # another process may have changed it meanwhile
_MOST = 10_000


class Remembered(Generic[V]):
    """Values by key, half a second old at most; none outlives a change that this process has made.

    Args:
        changes: how many changes this process has made to the database, so far.

    >>> made = iter("ab")
    >>> remembered = Remembered(lambda: 0)
    >>> remembered.get("key", lambda: next(made)), remembered.get("key", lambda: next(made))
    ('a', 'a')
    """

    def __init__(self, changes: Callable[[], int]) -> None:
        self._changes = changes
        self._kept: OrderedDict[Hashable, tuple[float, int, V]] = OrderedDict()
        self._guard = threading.Lock()

    def known(self, key: Hashable) -> tuple[V] | None:
        """What is remembered, in a tuple, because it may be None; None when nothing is."""
        found = self._kept.get(key)
        if found is None or found[0] < time.monotonic() or found[1] != self._changes():
            return None
        return (found[2],)

    def get(self, key: Hashable, look: Callable[[], V]) -> V:
        """What is remembered, or else what `look` finds."""
        known = self.known(key)
        if known is not None:
            return known[0]
        changes = self._changes()  # before looking: what changes meanwhile is not remembered as it was
        value = look()
        with self._guard:
            self._kept[key] = time.monotonic() + SECONDS, changes, value
            self._kept.move_to_end(key)
            while len(self._kept) > _MOST:
                self._kept.popitem(last=False)
        return value
