"""Keeping an object differently, whole or as a delta: the same id, another file in its place."""

from __future__ import annotations

from ..checkpoint import sync_folder
from ..errors import StoreError
from .objects import MAX_CHAIN, Objects
from .places import explained
from .writing import writing


def rewrite(objects: Objects, object_id: str, base: str | None, *, threads: int | None = None) -> tuple[int, int]:
    """Keep an object that is there whole, or as a delta against `base` where that takes fewer bytes.

    A reader sees the old file or the new one. The chains of objects that are deltas against this one grow by what this
    one's grows: the caller knows them, and keeps them short.

    Args:
        objects: the store's objects.
        object_id: what is kept.
        base: the object that it becomes a delta against; None to keep it whole.
        threads: how many.

    Returns:
        bytes of its file before, and after.

    Raises:
        CorruptError: it, or its old or new base, is missing or damaged; nothing was changed.
        StoreError: `base` is a delta against the object itself or ends too long a chain, or the store cannot be written.
    """
    path = objects.path(object_id)
    before = objects.stored_bytes(object_id)
    if base is not None:
        _check_chain(objects, object_id, base)
    with writing(objects, threads) as pen, objects.opened(object_id) as old, pen.draft(old.envelope.head) as draft:
        rows = old.envelope.rows
        pieces = ((k, old.chunk(k), row.digest) for k, row in enumerate(rows))
        envelope, shared = pen.fill(draft, old.envelope.head, pieces, () if base is None else (base,), MAX_CHAIN)
        # Under the lock, because two that turn each other into deltas at once would lose both.
        with objects.places.locked(), explained(path):
            if envelope.base is not None:
                _check_chain(objects, object_id, envelope.base)
            draft.publish(envelope, path, shared, replace=True)
            sync_folder(path.parent)
    return before, objects.stored_bytes(object_id)


def _check_chain(objects: Objects, object_id: str, base: str) -> None:
    chain = (base, *objects.bases(base))
    if object_id in chain:
        raise StoreError("an object cannot be a delta against itself", where=objects.path(object_id), got=base)
    if len(chain) >= MAX_CHAIN:
        raise StoreError("a chain of deltas is too long", where=objects.path(object_id), expected=MAX_CHAIN)
