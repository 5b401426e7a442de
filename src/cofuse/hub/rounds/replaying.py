"""A release made again from its record, and how it compares with what is there."""

from __future__ import annotations

from typing import NamedTuple

from ...progress import SILENT, Progress
from ...store import Store
from ...store.differences import changes, tensor_changes
from ...store.trees import load_tree
from .making import Recorded, make
from .releasing import make_release

_FOUND = frozenset({"of", "base", "content", "licences"})  # what making a release adds to its record


class Again(NamedTuple):
    """A release made again: its commit as it is there, and as it was made; the same, or where they differ.

    Attributes:
        recorded, made: ids of the commits.
        tensors: that differ.
        files: that differ, weights not counted.
        versions: of what made it then and makes it now, where they differ.
    """

    recorded: str
    made: str
    tensors: tuple[str, ...]
    files: tuple[str, ...]
    versions: dict[str, tuple[str, str]]

    @property
    def same(self) -> bool:
        """Whether it is what it was."""
        return self.recorded == self.made


def replay(store: Store, rev: str, *, threads: int | None = None, progress: Progress = SILENT) -> Again:
    """Make a release, or a round's commit, again from its record, and compare. No ref is moved.

    Args:
        store: has the release and what it was made from: all that `needs` names.
        rev: the release.
        threads: how many; nothing depends on it.
        progress: told of every chunk.

    Raises:
        FuseError: the commit was not made by a round.
        CorruptError: what it was made from is not there.
    """
    from ...fuse.record import versions

    there = store.load_commit(rev)
    what = Recorded.of(there)
    made = make(store, what, threads=threads, progress=progress)
    release = there.record.get("release")
    if release is not None:
        made = make_release(store, made, {key: value for key, value in release.items() if key not in _FOUND})
    then, now = what.record.get("versions", {}), versions()
    other = {name: (then[name], now.get(name, "not there")) for name in sorted(then) if then[name] != now.get(name)}
    if made.id == there.id:
        return Again(there.id, made.id, (), (), other)
    tensors = tensor_changes(store.checkpoint(there.id), store.checkpoint(made.id))
    weights = {
        path
        for tree in (there.tree, made.tree)
        for path in load_tree(store.objects, tree).files
        if path.endswith(".safetensors")
    }
    files = changes(load_tree(store.objects, there.tree).files, load_tree(store.objects, made.tree).files)
    return Again(there.id, made.id, tuple(tensors), tuple(f for f in files if f not in weights), other)


def needs(store: Store, rev: str) -> tuple[str, ...]:
    """The commits that a release was made from."""
    return Recorded.of(store.load_commit(rev)).needs
