"""How a page says times, sizes, roles and states."""

from __future__ import annotations

import time
from datetime import UTC, datetime

from ...report.words import duration, protocol_words, score, short, signed

# State of a contribution, a round or a job: the word, and the class that colours it.
STATES: dict[str, tuple[str, str]] = {
    "draft": ("announced", "quiet"),
    "received": ("received", "quiet"),
    "open": ("open", "good"),
    "fusing": ("in a round", "busy"),
    "fused": ("fused", "done"),
    "refused": ("refused", "bad"),
    "withdrawn": ("withdrawn", "quiet"),
    "revoked": ("revoked", "bad"),
    "judging": ("at the gate", "busy"),
    "publishing": ("publishing", "busy"),
    "published": ("released", "done"),
    "held": ("held for a maintainer", "warn"),
    "abandoned": ("abandoned", "quiet"),
    "failed": ("failed", "bad"),
    "waiting": ("waiting", "quiet"),
    "running": ("running", "busy"),
    "done": ("done", "done"),
    "pass": ("pass", "good"),
    "warn": ("look", "warn"),
    "refuse": ("refuse", "bad"),
    "skip": ("not made", "quiet"),
    "undecided": ("undecided", "warn"),
    "block": ("blocked", "bad"),
    "skipped": ("not asked", "quiet"),
    "unable": ("could not tell", "warn"),
}


def day(seconds: float) -> str:
    """A time as a day.

    >>> day(0)
    '1 Jan 1970'
    """
    at = datetime.fromtimestamp(seconds, UTC)
    return f"{at.day} {at:%b %Y}"


def moment(seconds: float) -> str:
    """A time to the second, as machines write it.

    >>> moment(0)
    '1970-01-01T00:00:00Z'
    """
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"


def ago(seconds: float, now: float | None = None) -> str:
    """How long ago, roughly; a day where that is long.

    >>> ago(0, 30), ago(0, 400), ago(0, 86400 * 3), ago(0, 86400 * 60)
    ('just now', '6 min ago', '3 days ago', '1 Jan 1970')
    """
    past = (time.time() if now is None else now) - seconds
    if past < 60:
        return "just now" if past > -60 else day(seconds)
    if past < 3600:
        return f"{past // 60:.0f} min ago"
    if past < 86400:
        return f"{past // 3600:.0f} h ago"
    days = int(past // 86400)
    return "yesterday" if days == 1 else f"{days} days ago" if days < 30 else day(seconds)


def size(count: int) -> str:
    """Bytes as people say them.

    >>> size(0), size(1536), size(90_868_376)
    ('0 B', '1.5 KiB', '87 MiB')
    """
    value, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" or value >= 10 else f"{value:.1f} {unit}"


def percent(share: float) -> str:
    """A share.

    >>> percent(0.125)
    '12.5 %'
    """
    return f"{100 * share:.1f} %"


def state_word(state: str) -> str:
    """What a state is called."""
    return STATES.get(state, (state, "quiet"))[0]


def state_class(state: str) -> str:
    """How a state is coloured."""
    return STATES.get(state, (state, "quiet"))[1]


FILTERS = {
    "ago": ago,
    "day": day,
    "moment": moment,
    "size": size,
    "percent": percent,
    "score": score,
    "signed": signed,
    "short": short,
    "duration": duration,
    "protocol": protocol_words,
    "state_word": state_word,
    "state_class": state_class,
}
