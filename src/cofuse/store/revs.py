"""Revisions: how people name commits.

main, v1            a branch or a tag; refs/heads/main, refs/tags/v1 where one name is both
origin/main         a remote's branch, where it was when last seen
HEAD                the branch that HEAD names
1f3a                the start of a commit's id, four digits or more
main~2, main^       steps back along first parents; main^2 is the second parent
"""

from __future__ import annotations

import re

from ..errors import CorruptError, RefError
from .commits import load_commit
from .objects import Objects
from .refs import HEADS, NAMESPACES, REMOTES, TAGS, Refs, check_ref_name

_REV = re.compile(r"([^~^]+)((?:[~^]\d{0,6})*)")
_STEP = re.compile(r"([~^])(\d*)")
_PREFIX = re.compile(r"[0-9a-f]{4,64}")


def resolve(rev: str, objects: Objects, refs: Refs) -> str:
    """The commit id that a revision names.

    Raises:
        RefError: it names nothing, or more than one thing.
    """
    match = _REV.fullmatch(rev)
    if not match:
        raise RefError("not a revision", got=ascii(rev[:80]), expected="such as main, v1~2, HEAD^ or 1f3a9c")
    commit = _named(match.group(1), objects, refs)
    for kind, digits in _STEP.findall(match.group(2)):
        number = int(digits) if digits else 1
        if kind == "~":
            for _ in range(number):
                commit = _parent(commit, 1, objects, rev)
        elif number:
            commit = _parent(commit, number, objects, rev)
    return commit


def _named(name: str, objects: Objects, refs: Refs) -> str:
    if name == "HEAD":
        head = refs.head()
        commit = refs.get(head)
        if commit is None:
            raise RefError("there is no commit yet", where=head, hint="make the first: cofuse commit DIR -m MESSAGE")
        return commit
    if name.startswith(NAMESPACES):
        found = [c for c in [refs.get(name)] if c is not None]
    else:
        found = [c for c in (refs.get(under + name) for under in (HEADS, TAGS) if _allowed(name)) if c is not None]
        if not found and _allowed(name):
            found = [c for c in [refs.get(REMOTES + name)] if c is not None]
    if len(found) > 1:
        raise RefError("a branch and a tag have this name", got=name, hint=f"say {HEADS}{name} or {TAGS}{name}")
    if found:
        return found[0]
    if _PREFIX.fullmatch(name):
        commits = [i for i in objects.starting_with(name) if _is_commit(i, objects)]
        if len(commits) == 1:
            return commits[0]
        if commits:
            raise RefError(
                "more than one commit starts like this", got=name, expected=", ".join(c[:12] for c in commits[:5])
            )
    from ..document import nearest

    known = [name for under in NAMESPACES for name in refs.all(under)]
    raise RefError("no such revision", got=ascii(name[:80]), hint=nearest(name, known) if known else None)


def _allowed(name: str) -> bool:
    try:
        check_ref_name(name)
    except RefError:
        return False
    return True


def _is_commit(object_id: str, objects: Objects) -> bool:
    try:
        return objects.envelope(object_id).head.kind == "commit"
    except CorruptError:
        return False  # fsck tells of it


def _parent(commit: str, number: int, objects: Objects, rev: str) -> str:
    parents = load_commit(objects, commit).parents
    if number > len(parents):
        raise RefError("there is no such ancestor", got=rev, where=commit, expected=f"{len(parents)} parents there")
    return parents[number - 1]
