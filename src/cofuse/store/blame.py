"""Which commit last changed each tensor. Only commits, trees and headers are read."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from fnmatch import fnmatchcase

from .commits import Commit, load_commit
from .objects import Objects
from .parts import Trees, labelled


def blame(objects: Objects, commit_id: str, glob: str = "*") -> dict[str, Commit]:
    """The commit that last changed each tensor of a version, by the tensor's name.

    A tensor is followed to the first parent that has the same one under the same name; the commit where no parent has is
    the one. So a merge answers for what it fused, and for nothing else.

    Args:
        objects: of the store.
        commit_id: the version.
        glob: only names that fit it.

    Raises:
        CorruptError: a commit, tree or header is missing or damaged.
    """
    versions = _Versions(objects)
    first = load_commit(objects, commit_id)
    order = [name for name in versions.ids(first) if fnmatchcase(name, glob)]
    found: dict[str, Commit] = {}
    asked: dict[str, set[str]] = {first.id: set(order)}  # commit -> names that are looked for there
    waiting = [(-first.time_ns, first.id, first)]
    while waiting:
        commit = heapq.heappop(waiting)[2]
        left = asked.pop(commit.id)
        for parent_id in commit.parents:
            if not left:
                break
            parent = load_commit(objects, parent_id)
            held = left
            if parent.tree != commit.tree:
                mine, theirs = versions.ids(commit), versions.ids(parent)
                held = {name for name in left if theirs.get(name) == mine[name]}
            if not held:
                continue
            left = left - held
            if parent_id not in asked:
                # Whatever the times say, a commit that is asked again later is looked at again.
                asked[parent_id] = set()
                heapq.heappush(waiting, (-parent.time_ns, parent.id, parent))
            asked[parent_id] |= held
        found.update(dict.fromkeys(left, commit))
    return {name: found[name] for name in order}


class _Versions:
    """Tensor ids of versions; only the last few are remembered."""

    def __init__(self, objects: Objects) -> None:
        self._trees = Trees(objects)
        self._last: dict[str, Mapping[str, str]] = {}

    def ids(self, commit: Commit) -> Mapping[str, str]:
        found = self._last.get(commit.tree)
        if found is None:
            where = f"commit {commit.id[:12]}"
            parts = self._trees.parts(self._trees.load(commit.tree), where)
            found = labelled({group: part.tensor_ids() for group, part in parts.items()})
            self._last[commit.tree] = found
            while len(self._last) > 4:
                del self._last[next(iter(self._last))]
        return found
