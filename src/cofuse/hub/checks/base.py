"""Base: it was made on the commit that it names."""

from __future__ import annotations

from ...checkpoint import content_id
from ...patch import apply
from ..states import Checked
from .case import Case, Found


def look(case: Case) -> Found:
    """A patch knows its base by content id; of weights, the next check sees whether they could be of it."""
    base = case.payload["base"]
    if case.patch is not None:
        case.sent = apply(case.base, case.patch)
    detail = {"base": base, "content": content_id(case.base)}
    said = "made on" if case.patch is not None else "offered on"
    return Found(Checked.PASS, f"{said} {base[:12]}, of {case.payload['branch']}", detail)
