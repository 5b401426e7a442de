"""Change: it is not its base."""

from __future__ import annotations

from ...checkpoint import content_id
from ...errors import CheckpointError
from ..states import Checked
from .case import Case, Found


def look(case: Case) -> Found:
    """Refuse what changes nothing."""
    if case.content == content_id(case.base):
        raise CheckpointError("nothing is changed", got="the weights of the base")
    return Found(Checked.PASS, f"new weights: {case.content[:12]}", {"content": case.content})
