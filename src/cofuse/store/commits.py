"""Commits: which tree, after which commits, and how it was made."""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ..errors import CorruptError
from .canonical import canonical, parse_canonical
from .envelope import Head
from .objects import ID, Objects
from .writing import Writing

MAX_COMMIT = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Commit:
    """A version: its tree, its parents, and its record (recipe, inputs, seed, versions).

    The time is kept beside the commit and not hashed, so that the same work gives the same id.
    """

    id: str
    tree: str
    parents: tuple[str, ...]
    message: str
    author: str
    record: Mapping[str, Any]
    content: str | None  # content id of the tree's checkpoint
    time_ns: int  # since 1970

    @property
    def when(self) -> datetime:
        """The time it was made, in UTC."""
        return datetime.fromtimestamp(self.time_ns / 1e9, UTC)


def put_commit(
    writing: Writing,
    objects: Objects,
    *,
    tree: str,
    content: str | None,
    parents: Sequence[str],
    message: str,
    author: str,
    record: Mapping[str, Any],
) -> Commit:
    """Keep a commit; making the same one again gives the one that is there, with its time."""
    for parent in parents:
        writing.rely_on(parent)
    data = canonical(
        {
            "author": author,
            "content": content,
            "message": message,
            "parents": list(parents),
            "record": dict(record),
            "tree": tree,
        },
        "record",
    )
    # Later than its parents by any clock, so that a log in order of time never shows a parent first.
    now = max([time.time_ns(), *(load_commit(objects, p).time_ns + 1 for p in parents)])
    return load_commit(objects, writing.put_bytes(Head("commit", len(data), None, now), data))


def load_commit(objects: Objects, commit_id: str) -> Commit:
    """Read a commit.

    Raises:
        CorruptError: it is missing or damaged.
    """
    head = objects.envelope(commit_id, "commit").head
    if head.size > MAX_COMMIT:
        raise CorruptError("the commit is too large", where=commit_id, expected=f"at most {MAX_COMMIT} bytes")
    where = f"commit {commit_id}"
    match parse_canonical(objects.read(commit_id, kind="commit"), where):
        case {
            "author": str(author),
            "content": content,
            "message": str(message),
            "parents": list(parents),
            "record": dict(record),
            "tree": str(tree),
            **rest,
        } if not rest and all(isinstance(i, str) and ID.fullmatch(i) for i in [tree, *parents, content or tree]):
            return Commit(commit_id, tree, tuple(parents), message, author, record, content, head.time_ns or 0)
    raise CorruptError("not a commit", where=where)


def history(objects: Objects, commit_id: str) -> Iterator[Commit]:
    """A commit and all before it, newest first; each once, never before one that it is a parent of."""
    first = load_commit(objects, commit_id)
    seen = {first.id}
    waiting = [(-first.time_ns, first.id, first)]
    while waiting:
        commit = heapq.heappop(waiting)[2]
        yield commit
        for parent in commit.parents:
            if parent not in seen:
                seen.add(parent)
                found = load_commit(objects, parent)
                heapq.heappush(waiting, (-found.time_ns, found.id, found))
