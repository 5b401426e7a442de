"""The audit log: who did what to what. Secrets never come here."""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy.orm import Session as Transaction

from ..database import Audit
from .visitor import Visitor


def note(
    transaction: Transaction,
    visitor: Visitor | None,
    action: str,
    target: str,
    *,
    repository: int | None = None,
    **detail: Any,
) -> None:
    """Add a line; it lasts if, and only if, what it tells of does: it is part of the same transaction.

    Args:
        transaction: the one that does it.
        visitor: who; None for the hub itself.
        action: `token.create`, `contribution.accept`, ...
        target: its name.
        repository: where.
        detail: more, as JSON.
    """
    transaction.add(
        Audit(
            at=time.time(),
            account_id=None if visitor is None else visitor.account,
            repository_id=repository,
            action=action,
            target=target[:300],
            detail=detail,
        )
    )
