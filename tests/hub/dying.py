"""A process that moves a ref of a repository in a bucket, and dies on the way."""

from __future__ import annotations

import os
from typing import Any

from cofuse.hub.copies import Copy
from cofuse.hub.settings import Settings
from cofuse.hub.storage import Storage
from cofuse.store.refs import Refs
from cofuse.store.remotes.bucket import BucketRemote

KEPT = "0123456789abcdef0123456789abcdef"  # the repository's key
# What it has just done: brought the objects, made a note, moved the bucket's ref, moved the folder's.
POINTS = ("objects", "noted", "bucket", "folder")


def move_and_die(settings: Settings, point: str, ref: str, new: str, old: str) -> None:
    """A process that moves a ref, and dies at a point."""

    def dying(owner: Any, name: str, *, before: bool = False) -> None:
        own = getattr(owner, name)

        def wrapped(*arguments: Any, **named: Any) -> Any:
            if not before:
                own(*arguments, **named)
            os._exit(7)

        setattr(owner, name, wrapped)

    if point == "objects":
        dying(Copy, "keep")
    elif point == "noted":
        dying(BucketRemote, "update", before=True)
    elif point == "bucket":
        dying(BucketRemote, "update")
    else:
        dying(Refs, "update")
    store, _ = Storage(settings.storage, settings.data).open(KEPT)
    store.refs.update(ref, new, expect=old)
