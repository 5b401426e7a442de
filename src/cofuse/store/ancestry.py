"""Which commits come before which: ancestors, and the merge bases of two commits.

Times steer the order in which commits are read, so that a merge of two branches reads what happened since they parted
and not all that was before. The answer never depends on them: a commit from a stranger may carry any time.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import Protocol

from .commits import load_commit
from .objects import Objects

_OURS, _THEIRS, _OLD = 1, 2, 4  # reached from one, from the other, below a common ancestor


class Node(Protocol):
    """What is needed of a commit."""

    @property
    def id(self) -> str:
        """Its id."""

    @property
    def parents(self) -> Sequence[str]:
        """Ids of what it comes after."""

    @property
    def time_ns(self) -> int:
        """When it was made; a hint."""


Load = Callable[[str], Node]


def merge_bases(objects: Objects, ours: str, theirs: str) -> list[str]:
    """The best common ancestors of two commits: those that are not before another common ancestor; sorted by id.

        one            where the two parted; of a commit and its ancestor it is the ancestor
        several        each side has merged the other before (criss-cross)
        none           their histories have nothing in common

    Raises:
        CorruptError: a commit is missing or damaged.
    """
    return best_common(lambda commit: load_commit(objects, commit), ours, theirs)


def is_ancestor(objects: Objects, old: str, new: str) -> bool:
    """Whether `old` is `new`, or comes before it."""
    return merge_bases(objects, old, new) == [old]


def best_common(load: Load, ours: str, theirs: str) -> list[str]:
    """`merge_bases` over any commits.

    Source: the paint-down of git's commit-reach.c, followed by its removal of redundant answers.
    """
    if ours == theirs:
        return [ours]
    marks: dict[str, int] = {}
    queue = _Newest(load)
    for commit, mark in ((ours, _OURS), (theirs, _THEIRS)):
        marks[commit] = mark
        queue.push(commit)
    common: dict[str, None] = {}
    waiting = 2  # commits in the queue that are not old
    while waiting:
        node = queue.pop()
        mark = marks[node.id]
        waiting -= not mark & _OLD
        if mark == _OURS | _THEIRS:
            common[node.id] = None
            mark |= _OLD
        for parent in node.parents:
            before = marks.get(parent, 0)
            after = before | mark
            if after == before:
                continue
            marks[parent] = after
            queued = parent in queue
            if not queued:
                queue.push(parent)
            # What was waiting and is old now, or what waits from here on.
            waiting += (not after & _OLD) - (queued and not before & _OLD)
    found = [commit for commit in common if not marks[commit] & _OLD]
    return sorted(found if len(found) < 2 else _heads(load, found))


def _heads(load: Load, commits: Sequence[str]) -> list[str]:
    """Those of the commits that are before none of the others. Reads all that is before them, for times may lie."""
    seen: set[str] = set()
    waiting = [parent for commit in commits for parent in load(commit).parents]
    while waiting:
        commit = waiting.pop()
        if commit not in seen:
            seen.add(commit)
            waiting += load(commit).parents
    return [commit for commit in commits if commit not in seen]


class _Newest:
    """Commits waiting, newest first; each at most once at a time."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._heap: list[tuple[int, int, Node]] = []
        self._inside: set[str] = set()
        self._numbers: Iterator[int] = count()  # nodes of one time are never compared

    def __contains__(self, commit: str) -> bool:
        return commit in self._inside

    def push(self, commit: str) -> None:
        node = self._load(commit)
        self._inside.add(commit)
        heapq.heappush(self._heap, (-node.time_ns, next(self._numbers), node))

    def pop(self) -> Node:
        node = heapq.heappop(self._heap)[2]
        self._inside.remove(node.id)
        return node
