"""Trees that are kept without a commit: whoever else names them, git's manifests for one, has said so here.

    roots/KIND/TREE     empty; KIND is the id of the safetensors header that the tree's weights have, or "file"

So gc knows what it must keep, and the last version with the same tensors is at hand as a base for the next. A root that is
kept again is touched: its age says when it was last wanted.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from ...checkpoint import sync_folder
from ..objects import ID
from ..places import Places, explained, make_folder
from ..trees import Tree, Weights

FILE = "file"


def keep(places: Places, tree_id: str, tree: Tree) -> None:
    """Keep a tree from being collected; it lasts once this returns."""
    kind = next((entry.header for entry in tree.files.values() if isinstance(entry, Weights)), FILE)
    path = places.root / "roots" / kind / tree_id
    with explained(path):
        make_folder(path.parent)
        try:
            os.utime(path)
        except FileNotFoundError:
            path.touch()
            sync_folder(path.parent)


def roots(places: Places) -> list[str]:
    """The trees that are kept, in order; gc must take all that they reach for needed."""
    return sorted({path.name for path in _walk(places)})


def newest(places: Places, kind: str) -> list[str]:
    """The tree of this kind that was kept last, if there is one."""
    found = sorted(_walk(places, kind), key=_touched)
    return [path.name for path in found[-1:]]


def forget(places: Places, needed: set[str], older_than: float, *, dry_run: bool = False) -> list[str]:
    """Drop the roots that are not `needed` and were last wanted longer ago than so many seconds; gives their trees.

    A root younger than that may belong to a `git add` that has not written its manifest yet.
    """
    limit = time.time() - older_than
    gone = [path for path in _walk(places) if path.name not in needed and _touched(path) <= limit]
    with explained(places.root):
        for path in () if dry_run else gone:
            path.unlink(missing_ok=True)
        for folder in sorted({path.parent for path in gone}):
            sync_folder(folder)
    return sorted({path.name for path in gone})


def _walk(places: Places, kind: str = "*") -> Iterator[Path]:
    for path in (places.root / "roots").glob(f"{kind}/*"):
        if ID.fullmatch(path.name):
            yield path


def _touched(path: Path) -> float:
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_mtime
    return 0.0
