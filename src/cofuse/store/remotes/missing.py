"""What one store has and another has not: found from commits down, so that what both have is hardly looked at.

Every store is closed: what is there has all it needs there, because parts are written first (and removed last). So
below a commit, or a tree, that the other side has, nothing needs to be asked.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from itertools import count

from ...errors import CorruptError
from ..commits import Commit, load_commit
from ..objects import Objects
from ..trees import Plain, Tree, load_header

Load = Callable[[str], Commit]


def new_commits(load: Load, tips: Iterable[str], had: Iterable[str]) -> list[Commit]:
    """The commits at and before `tips` that are not at or before `had`; parents before their children.

    Times decide only how much of what is old is read. A commit in `had` that cannot be loaded is passed over.

    Args:
        load: reads a commit.
        tips: what shall be there.
        had: what is.
    """
    old, seen = set(had), dict[str, Commit]()
    queue: list[tuple[int, int, str]] = []
    numbers = count()
    fresh = 0

    def push(commit_id: str) -> None:
        nonlocal fresh
        if commit_id in seen:
            return
        try:
            seen[commit_id] = load(commit_id)
        except CorruptError:
            if commit_id not in old:
                raise
            return
        fresh += commit_id not in old
        heapq.heappush(queue, (-seen[commit_id].time_ns, next(numbers), commit_id))

    for commit_id in [*old, *tips]:
        push(commit_id)
    found: dict[str, Commit] = {}
    while fresh:
        commit_id = heapq.heappop(queue)[2]
        commit = seen[commit_id]
        if commit_id in old:
            for parent in commit.parents:
                fresh -= parent in seen and parent not in old and parent not in found
                old.add(parent)
        else:
            fresh -= 1
            found[commit_id] = commit
        for parent in commit.parents:
            push(parent)
    return parents_first(found)


def parents_first(commits: dict[str, Commit]) -> list[Commit]:
    """In an order that a kill may cut anywhere; times are not believed."""
    done: dict[str, Commit] = {}
    for first in reversed(commits):
        waiting = [first]
        while waiting:
            here = waiting[-1]
            before = [p for p in commits[here].parents if p in commits and p not in done]
            waiting += before
            if not before:
                done.setdefault(here, commits[here])
                waiting.pop()
    return list(done.values())


def sizes_of(objects: Objects, path: str, tree: Tree) -> dict[str, int]:
    """Bytes of everything a tree is made of, by id; its headers must be here.

    Raises:
        CorruptError: a header is missing or does not fit the tree.
    """
    sizes: dict[str, int] = {}
    for name, entry in tree.files.items():
        if isinstance(entry, Plain):
            sizes[entry.id] = entry.size
        else:
            header = load_header(objects, entry, f"{path}: {name}")
            sizes[entry.header] = header.data_start
            spots = zip(entry.tensors, header.entries.values(), strict=True)
            sizes.update((tensor, spot.end - spot.start) for tensor, spot in spots)
    return sizes


def loader(objects: Objects) -> Load:
    """Reads commits of one store."""
    return lambda commit_id: load_commit(objects, commit_id)
