"""Publishing a release: once and for all, its branch, its tag, its row."""

from __future__ import annotations

import time

from sqlalchemy.orm import Session as Transaction

from ...errors import RefError
from ...store.ancestry import is_ancestor
from ...store.refs import HEADS, TAGS
from ..database import Release, Round
from ..faults import Conflict
from ..hub import Hub


def publish(hub: Hub, transaction: Transaction, round_: Round, commit: str) -> Release:
    """Move the branch, make the tag and the row. Doing it again, after a kill anywhere in it, changes nothing.

    Args:
        hub: whose.
        transaction: in which the round becomes published.
        round_: whose release it is.
        commit: the release's.

    Raises:
        Conflict: the branch has moved meanwhile, or the tag is taken: nothing was published.
    """
    store = hub.store(round_.repository)
    branch, tag = HEADS + round_.branch, f"{TAGS}{round_.version}"
    tip, tagged = store.refs.get(branch), store.refs.get(tag)
    if tagged not in (None, commit):
        raise Conflict("there is a tag of that name", where=tag, got=tagged)
    # Where it is there it was moved before a kill, and may have gone on since.
    if tip is None or not is_ancestor(store.objects, commit, tip):
        try:
            store.refs.update(branch, commit, expect=round_.base)
        except RefError as error:
            raise Conflict(
                "the branch has moved meanwhile", where=branch, got=error.got, expected=error.expected
            ) from None
    try:
        store.refs.update(tag, commit, expect=None)
    except RefError as error:
        raise Conflict("the tag cannot be made", where=tag, got=error.got) from None
    hub.files.warm(store, commit)
    now = time.time()
    row = Release(
        repository_id=round_.repository_id,
        branch=round_.branch,
        version=round_.version,
        commit=commit,
        round_id=round_.id,
        created=now,
    )
    transaction.add(row)
    round_.repository.updated = now
    transaction.flush()
    return row
