"""A merge, cherry-pick or revert made again from the record in its commit, and how it compares with what is there."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from pydantic import ValidationError

from ..errors import FuseError, StoreError
from ..fuse import Recipe
from ..progress import SILENT, Progress
from .blending import Merged
from .deciding import Settled
from .joining import Three
from .merging import three_way
from .parts import Trees
from .recipes import fusing
from .trees import Tree, Weights

if TYPE_CHECKING:
    from .store import Store


class Again(NamedTuple):
    """A merge made again: the recorded tree, and what was made; the same, or where they differ."""

    recorded: str
    made: str
    tensors: tuple[str, ...]
    files: tuple[str, ...]

    @property
    def same(self) -> bool:
        """Whether it is what it was."""
        return self.recorded == self.made


def replay(store: Store, rev: str, *, threads: int | None = None, progress: Progress = SILENT) -> Again:
    """Make a merge, cherry-pick or revert again from its commit's record, keeping nothing, and compare.

    Raises:
        StoreError: the commit has no such record.
        CorruptError: what it was made from is not there any more.
    """
    commit = store.load_commit(rev)
    match commit.record.get("merge"):
        case {
            "verb": str(verb),
            "base": str(base),
            "ours": str(ours),
            "theirs": str(theirs),
            "recipe": dict(recipe),
            "settled": {"ours": list(for_ours), "theirs": list(for_theirs)},
        }:
            three = Three(verb, base, ours, theirs)
            settled = Settled(tuple(map(str, for_ours)), tuple(map(str, for_theirs)))
        case _:
            raise StoreError("no record of a merge", where=f"commit {commit.id[:12]}", hint="only merges have one")
    try:
        how = Recipe.model_validate(recipe)
    except ValidationError as error:
        raise FuseError(
            "the recorded recipe cannot be read", where=f"commit {commit.id[:12]}", got=error.errors()[0]["msg"]
        ) from None
    trees = Trees(store.objects)
    merged = three_way(trees, *three.sides(trees), fuse=fusing(how), settled=settled)
    tree = merged.tree(threads=threads or os.cpu_count() or 1, progress=progress)
    return Again(commit.tree, tree.id, *_apart(trees, merged, tree, trees.load(commit.tree)))


def _apart(trees: Trees, merged: Merged, made: Tree, there: Tree) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The tensors, and the files, that differ between what was made again and what is there."""
    made_headers = {path: h for blend in merged.blends.values() for path, h in blend.headers.items()}
    there_headers = {path: h for part in trees.parts(there, "there").values() for path, h in part.headers.items()}
    ours, theirs = (
        {
            f"{path}: {name}": tensor
            for path, header in headers.items()
            if isinstance(entry := tree.files[path], Weights)
            for name, tensor in zip(header.entries, entry.tensors, strict=True)
        }
        for tree, headers in ((made, made_headers), (there, there_headers))
    )
    tensors = (name for name in dict.fromkeys([*ours, *theirs]) if ours.get(name) != theirs.get(name))
    files = (path for path in sorted({*made.files, *there.files}) if made.files.get(path) != there.files.get(path))
    return tuple(tensors), tuple(files)
