"""Shapes: every tensor of the base is there, of its shape and dtype."""

from __future__ import annotations

from ...checkpoint import body
from ...evolve.screen import check_whole
from ..states import Checked
from .case import Case, Found


def look(case: Case) -> Found:
    """Take the body; a head is dropped, and files are the base's."""
    if case.sent is None:
        raise TypeError("nothing is open")
    mine = body(case.sent, like=case.base)
    check_whole(mine, case.base)
    case.body = mine
    head = len(mine.choices.dropped)
    dropped = f"; {head} others dropped" if head else ""
    detail = {
        "prefix": mine.choices.prefix,
        "dropped": list(mine.choices.dropped[:20]),
        "kept": list(mine.choices.kept[:20]),
    }
    return Found(Checked.PASS, f"{len(mine.names())} tensors, as the base's{dropped}", detail)
