"""Rates: so many requests a minute, and so many wrong tokens."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict

from ..faults import TooOften

_MOST = 100_000  # whose rates are remembered; the longest silent are forgotten first


class Rate:
    """A bucket of `a_minute` drops for everybody, which fills again evenly (a token bucket).

    >>> rate = Rate(2)
    >>> rate.take("a"), rate.take("a"), rate.take("a"), rate.take("b")
    (True, True, False, True)
    """

    def __init__(self, a_minute: int) -> None:
        self._most = float(a_minute)
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._guard = threading.Lock()

    def take(self, who: str) -> bool:
        """Take one; False when there is none left."""
        with self._guard:
            left = self._now(who)
            taken = left >= 1
            self._left[who] = (left - taken, time.monotonic())
            self._left.move_to_end(who)
            if len(self._left) > _MOST:
                self._left.popitem(last=False)
        return taken

    def empty(self, who: str) -> bool:
        """Whether there is none left; takes nothing."""
        with self._guard:
            return self._now(who) < 1

    def must(self, who: str) -> None:
        """Take one.

        Raises:
            TooOften: there is none left.
        """
        if not self.take(who):
            raise self.error()

    def error(self) -> TooOften:
        """What is answered when there is none left."""
        return TooOften("too many requests", expected=f"{self._most:.0f} a minute", hint=f"wait {self.wait} s")

    @property
    def wait(self) -> int:
        """Seconds after which there is one again."""
        return max(1, round(60 / self._most))

    def _now(self, who: str) -> float:
        left, at = self._left.get(who, (self._most, 0.0))
        return min(self._most, left + (time.monotonic() - at) * self._most / 60)
