"""What people say of a contribution, checked: its offer, labels, texts."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..faults import Invalid, Refused

if TYPE_CHECKING:
    from .offering import Offer

MAX_METRICS = 100
MAX_LABELS = 20
MAX_TEXT = 20_000  # characters of a message
MAX_FILES = 200
RECORD = "statistics.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,119}\.safetensors")


def check(wanted: Offer) -> None:
    """Refuse an offer that is none.

    Raises:
        Invalid: says what is wrong.
        Refused: a file is not safetensors.
    """
    ways = [bool(wanted.commit), bool(wanted.weights), wanted.patch is not None]
    if sum(ways) != 1:
        raise Invalid("nothing to be looked at, or too much", expected="one of commit, weights and patch")
    checked_text("title", wanted.title, 200)
    if not wanted.title.strip() or len(wanted.title.splitlines()) != 1:
        raise Invalid("a contribution needs a title", expected="one line of 1 to 200 characters")
    for name, most in (("branch", 200), ("message", MAX_TEXT), ("data", MAX_TEXT), ("licence", 100), ("nonce", 64)):
        checked_text(name, getattr(wanted, name), most)
    checked_text("signature", wanted.signature or "", 1 << 20)
    if wanted.examples is not None and not 0 < wanted.examples < 1 << 62:
        raise Invalid("not a number of examples", got=wanted.examples)
    checked_labels(wanted.labels)
    if len(wanted.metrics) > MAX_METRICS:
        raise Invalid("too many metrics", expected=f"at most {MAX_METRICS}")
    for name, value in wanted.metrics.items():
        checked_text("metrics", name, 100)
        if not math.isfinite(value):
            raise Invalid("a metric is no number", where=name, got=value)
    _check_names(wanted.weights, "weights")
    if wanted.fisher is not None and not isinstance(wanted.fisher, str):
        if RECORD not in wanted.fisher:
            raise Invalid("a Fisher needs its record", where="fisher", expected=RECORD)
        _check_names([name for name in wanted.fisher if name != RECORD], "fisher")


def _check_names(names: Iterable[str], where: str) -> None:
    names = list(names)
    if len(names) > MAX_FILES:
        raise Invalid("too many files", where=where, expected=f"at most {MAX_FILES}")
    for name in names:
        if not _NAME.fullmatch(name):
            raise Refused(
                "only safetensors are taken",
                where=where,
                got=ascii(name[:80]),
                expected="NAME.safetensors",
                hint="pickled files are not even looked at: save with safetensors",
            )


def checked_text(name: str, text: str, most: int) -> str:
    """Refuse text that is too long, or that a database or a page cannot hold.

    Raises:
        Invalid: it is such.
    """
    if len(text) > most:
        raise Invalid("too long", where=name, got=f"{len(text)} characters", expected=f"at most {most}")
    if "\0" in text or any("\ud800" <= c <= "\udfff" for c in text):
        raise Invalid("not text", where=name, got="a character that is none")
    return text


def checked_labels(labels: Iterable[str]) -> list[str]:
    """Refuse what are no labels; each once, in order.

    Raises:
        Invalid: they are none.
    """
    found = list(dict.fromkeys(labels))
    if len(found) > MAX_LABELS:
        raise Invalid("too many labels", expected=f"at most {MAX_LABELS}")
    for one in found:
        if not one.strip() or not one.isprintable() or len(checked_text("labels", one, 40)) > 40:
            raise Invalid("not a label", got=ascii(one[:60]), expected="1 to 40 printable characters")
    return found
