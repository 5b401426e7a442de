"""Finite: no NaN, no infinity anywhere; and a patch gives what it says that it gives."""

from __future__ import annotations

from ...errors import PatchError
from ...evolve.screen import finite_ids
from ..states import Checked
from .case import Case, Found


def look(case: Case) -> Found:
    """Read every value once; the first that is not finite is named."""
    if case.body is None:
        raise TypeError("there is no body")
    case.ids = finite_ids(case.body)
    whole = case.sent is not None and set(case.sent.names()) == set(case.body.names())
    if case.patch is not None and whole and case.content != case.patch.result:
        raise PatchError(
            "the patch does not give what it says",
            where=case.patch.path,
            got=f"content id {case.content}",
            expected=f"content id {case.patch.result}",
        )
    values = sum(case.body.spec(name).numel for name in case.body.names())
    return Found(Checked.PASS, f"all of {values:,} values", {"values": values})
