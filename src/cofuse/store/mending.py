"""Mending: damaged objects replaced by good copies from elsewhere, each verified before it takes the old one's place."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from ..checkpoint import sync_folder
from ..errors import CorruptError, StoreError
from ..progress import SILENT, Progress
from .objects import ID, Objects
from .places import explained, make_folder
from .receiving import InFolder, Receiving, Source
from .rewriting import rewrite
from .store import Store
from .writing import Writing


def mend(
    objects: Objects, ids: Iterable[str], source: Source | Path, *, progress: Progress = SILENT
) -> dict[str, str | None]:
    """Replace damaged objects, or put missing ones there, from a source that has them whole.

    A mended object is kept whole: what it was a delta against, here or there, may not be good here.

    Args:
        objects: the store's objects.
        ids: those that are damaged; what is no id (a ref's name) is left out.
        source: another store's objects; or a folder, which may be another store, or hold the files of a version.
        progress: told of every object.

    Returns:
        for each id None when it has been mended, else why not.

    Raises:
        StoreError: the source cannot be read, or the store cannot be written. What was mended before stays so.
    """
    wanted = [object_id for object_id in ids if ID.fullmatch(object_id)]
    with objects.places.staged() as folder:
        # Beside the store, so that nothing unverified is ever in it, and on the same disk.
        good = Store.init(folder / "good.cofuse")
        if isinstance(source, Path):
            source = _in_folder(source, folder, progress)
        done: dict[str, str | None] = {}
        bar = progress.bar("mending", len(wanted), "objects")
        with good.objects.places.staged() as arriving:
            receiving = Receiving(good.objects, Writing(good.objects, arriving), arriving, source)
            for object_id in wanted:
                done[object_id] = None
                try:
                    receiving.receive([object_id])
                    rewrite(good.objects, object_id, None)
                    _take_place(good.objects.path(object_id), objects, object_id)
                except CorruptError as error:
                    done[object_id] = error.line
                bar.advance()
    return done


def _in_folder(folder: Path, scratch: Path, progress: Progress) -> Source:
    try:
        return InFolder(Store.open(folder).objects)
    except StoreError:
        made = Store.init(scratch / "files.cofuse")
        made.add(folder, progress=progress)
        return InFolder(made.objects)


def _take_place(good: Path, objects: Objects, object_id: str) -> None:
    path = objects.path(object_id)
    with objects.places.locked(), explained(path):
        make_folder(path.parent)
        os.replace(good, path)
        sync_folder(path.parent)
