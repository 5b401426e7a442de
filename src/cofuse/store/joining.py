"""Merge, cherry-pick and revert: one three-way merge each, of three commits that the verb chooses.

verb          base               ours          theirs           parents of the result
merge         the merge base     the branch    what is merged   both
cherry-pick   the pick's parent  the branch    the pick         the branch
revert        the commit         the branch    its parent       the branch
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from blake3 import blake3

from ..errors import RefError, StoreError
from ..fuse import Recipe
from ..fuse.record import versions
from ..progress import SILENT, Progress
from .ancestry import merge_bases
from .blending import Report
from .commits import Commit, load_commit, put_commit
from .deciding import Settled
from .merging import Side, three_way
from .parts import Trees
from .recipes import fusing, recipe_for
from .refs import HEADS, check_ref_name
from .writing import writing

if TYPE_CHECKING:
    from .store import Store

_LISTED = 100  # names of fused tensors in a record; more are only counted and hashed


@dataclass(frozen=True, slots=True)
class How:
    """How what both sides changed is made one.

    Attributes:
        method: a row of `METHODS`; None: `linear` for a merge, `task_arithmetic` for a cherry-pick and a revert.
        settings: its parameters; `ours.weight` and `theirs.weight` are those of one side.
        seed: of random masks.
        settled: which side is taken for what.
    """

    method: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    settled: Settled = field(default_factory=Settled)


class Join(NamedTuple):
    """What was done: the commit the branch is at now, whether it was made by this, and what was merged."""

    commit: Commit
    made: bool
    report: Report


def merge(
    store: Store,
    rev: str,
    *,
    into: str | None = None,
    how: How = How(),
    base: str | None = None,
    fast_forward: bool = True,
    message: str | None = None,
    author: str = "",
    threads: int | None = None,
    progress: Progress = SILENT,
) -> Join:
    """Join another history to a branch.

    Where the branch has nothing of its own it is only moved (fast-forward); where it has everything already, nothing is
    done. Otherwise the two are merged from where they parted, and the commit has both as parents.

    Args:
        store: where.
        rev: what is merged.
        into: the branch; HEAD's when None.
        how: the method, `linear` when none is named: the base plus the mean of both changes.
        base: the merge base to take where there are several, or none.
        fast_forward: False makes a commit where moving the branch would do.
        message: of the commit.
        author: of the commit.
        threads: how many; the processor's number when None.
        progress: told of every chunk.

    Raises:
        ConflictError: both sides changed what cannot be fused; lists all of it. Nothing is written.
        StoreError: no merge base, or several: the histories criss-cross.
        RefError: a revision names nothing, or the branch has moved meanwhile.
        FuseError: the method is unknown, does not take the two sides, or gives what is not finite.
    """
    branch = store.refs.head() if into is None else HEADS + check_ref_name(into)
    theirs, ours = store.resolve(rev), store.refs.get(branch)
    if ours is None:
        if into is not None:
            raise RefError("no such branch", got=into, hint="make it: cofuse branch NAME")
        store.refs.update(branch, theirs, expect=None)
        return Join(load_commit(store.objects, theirs), False, Report())
    found = _bases(store, ours, theirs, base)
    if found == theirs:
        return Join(load_commit(store.objects, ours), False, Report())
    if found == ours and fast_forward and base is None:
        store.refs.update(branch, theirs, expect=ours)
        return Join(load_commit(store.objects, theirs), False, Report())
    said = message or f"merge {rev} into {branch.removeprefix(HEADS)}"
    three = Three("merge", found, ours, theirs)
    return _join(store, branch, three, how, "linear", (ours, theirs), said, author, threads, progress)


def cherry_pick(
    store: Store,
    rev: str,
    *,
    into: str | None = None,
    how: How = How(),
    mainline: int | None = None,
    message: str | None = None,
    author: str = "",
    threads: int | None = None,
    progress: Progress = SILENT,
) -> Join:
    """Do on a branch what one commit did elsewhere: ours + (commit - its parent), exact where ours did not change it.

    Args:
        store: where.
        rev: the commit.
        into: the branch; HEAD's when None.
        how: the method, `task_arithmetic` with weights 1 when none is named.
        mainline: which parent a merge is seen from, 1 or 2.
        message: of the new commit; the old one's when None.
        author: of the new commit.
        threads: how many.
        progress: told of every chunk.

    Raises:
        ConflictError: see `merge`.
        StoreError: the commit has no parent, or several and `mainline` does not say which.
    """
    pick = store.load_commit(rev)
    three = Three("cherry-pick", _parent(pick, mainline), "", pick.id)
    return _onto(store, three, into, how, message or pick.message, author, threads, progress)


def revert(
    store: Store,
    rev: str,
    *,
    into: str | None = None,
    how: How = How(),
    mainline: int | None = None,
    message: str | None = None,
    author: str = "",
    threads: int | None = None,
    progress: Progress = SILENT,
) -> Join:
    """Take back what one commit did: ours - (commit - its parent), exact where nothing came on top; see `cherry_pick`."""
    back = store.load_commit(rev)
    three = Three("revert", back.id, "", _parent(back, mainline))
    said = message or f"revert {back.id[:12]}: {back.message}"
    return _onto(store, three, into, how, said, author, threads, progress)


class Three(NamedTuple):
    """The commits that a verb merges, by id; what `merge.verb`, `base`, `ours` and `theirs` of a record are."""

    verb: str
    base: str
    ours: str
    theirs: str

    def sides(self, trees: Trees) -> tuple[Side, Side, Side]:
        """Their trees."""

        def side(name: str, commit: str) -> Side:
            return Side(f"{name} ({commit[:12]})", trees.load(load_commit(trees.objects, commit).tree))

        return side("base", self.base), side("ours", self.ours), side("theirs", self.theirs)


def _bases(store: Store, ours: str, theirs: str, base: str | None) -> str:
    if base is not None:
        return store.resolve(base)
    found = merge_bases(store.objects, ours, theirs)
    if len(found) == 1:
        return found[0]
    if not found:
        raise StoreError(
            "the two have no commit in common",
            got=f"{ours[:12]} and {theirs[:12]}",
            hint="name the version that both were made from: --base REV",
        )
    listed = (load_commit(store.objects, commit) for commit in found)
    raise StoreError(
        "the histories criss-cross: more than one merge base",
        got="\n    ".join([f"{len(found)} merge bases", *(f"{c.id[:12]} {c.message}" for c in listed)]),
        hint="name one: --base REV; or merge them first, and name that",
    )


def _parent(commit: Commit, mainline: int | None) -> str:
    count = len(commit.parents)
    if count == 0:
        raise StoreError("a first commit changes nothing", where=commit.id, hint="check it out instead")
    if (mainline is None and count > 1) or not 1 <= (mainline or 1) <= count:
        raise StoreError(
            "which parent is meant",
            where=f"{commit.id[:12]} {commit.message}",
            got=f"{count} parents" if mainline is None else f"--mainline {mainline}",
            expected=f"--mainline from 1 to {count}",
        )
    return commit.parents[(mainline or 1) - 1]


def _onto(
    store: Store,
    three: Three,
    into: str | None,
    how: How,
    message: str,
    author: str,
    threads: int | None,
    progress: Progress,
) -> Join:
    branch = store.refs.head() if into is None else HEADS + check_ref_name(into)
    ours = store.refs.get(branch)
    if ours is None:
        raise RefError("there is no commit yet", where=branch, hint="make the first: cofuse commit DIR -m MESSAGE")
    three = three._replace(ours=ours)
    return _join(store, branch, three, how, "task_arithmetic", (ours,), message, author, threads, progress)


def _join(
    store: Store,
    branch: str,
    three: Three,
    how: How,
    default: str,
    parents: Sequence[str],
    message: str,
    author: str,
    threads: int | None,
    progress: Progress,
) -> Join:
    trees = Trees(store.objects)
    base, ours, theirs = three.sides(trees)
    method = how.method or default
    recipe = recipe_for(method, how.settings, how.seed, ours=ours.tree.id, theirs=theirs.tree.id)
    merged = three_way(trees, base, ours, theirs, fusing(recipe), how.settled)
    record = {"merge": _record(three, recipe, how.settled, merged.report)}
    now = load_commit(store.objects, three.ours)
    with writing(store.objects) as pen:
        for read in dict.fromkeys((three.base, three.ours, three.theirs)):
            pen.rely_on(read)
        made, tree = merged.put(pen, ours.tree, threads=threads or os.cpu_count() or 1, progress=progress)
        if made == now.tree and len(parents) == 1:
            return Join(now, False, merged.report)
        commit = put_commit(
            pen,
            store.objects,
            tree=made,
            content=tree.content,
            parents=parents,
            message=message,
            author=author,
            record=record,
        )
        pen.sync()
        store.refs.update(branch, commit.id, expect=three.ours)
    return Join(commit, True, merged.report)


def _record(three: Three, recipe: Recipe, settled: Settled, report: Report) -> dict[str, Any]:
    """What `replay` needs to make the commit's tree again, and what a person wants to know. Written down in record.md."""
    names = report.fused
    return {
        **three._asdict(),
        "recipe": recipe.canonical,
        "seed": recipe.seed,
        "settled": {side: list(globs) for side, globs in settled._asdict().items()},
        "fused": {
            "tensors": len(names),
            "names": names[:_LISTED],
            "hash": blake3("\n".join(names).encode()).hexdigest(),
        },
        "versions": versions(),
    }
