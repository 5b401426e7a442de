"""Branches made current, moved, renamed and removed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import RefError
from .ancestry import is_ancestor
from .refs import HEADS, NAMESPACES, check_ref_name

if TYPE_CHECKING:
    from .store import Store


def use_branch(store: Store, name: str) -> None:
    """Make HEAD name a branch, so that commits and merges go there.

    Raises:
        RefError: there is no such branch.
    """
    store.refs.point_head(_there(store, name)[0])


def move_branch(store: Store, name: str, rev: str) -> str:
    """Point a branch, there or not, to a revision, wherever it was before; gives the commit.

    Raises:
        RefError: the name is not allowed, or the branch moves at the same time.
    """
    ref = HEADS + check_ref_name(name)
    before, commit = store.refs.get(ref), store.resolve(rev)
    store.refs.update(ref, commit, expect=before)
    return commit


def rename_branch(store: Store, old: str, new: str) -> None:
    """Give a branch another name, to HEAD too; a kill in between leaves both names.

    Raises:
        RefError: there is no such branch, or there is one of the new name.
    """
    ref, commit = _there(store, old)
    to = HEADS + check_ref_name(new)
    if store.refs.get(to) is not None:
        raise RefError("there is a branch of this name", got=new)
    store.refs.update(to, commit, expect=None)
    if store.refs.head() == ref:
        store.refs.point_head(to)
    store.refs.update(ref, None, expect=commit)


def delete_branch(store: Store, name: str, *, force: bool = False) -> str:
    """Remove a branch; gives the commit it pointed to.

    Args:
        store: where.
        name: of the branch.
        force: also where nothing else leads to its last commit, which `gc` then removes some day.

    Raises:
        RefError: there is no such branch, HEAD names it, or its last commit would be lost.
    """
    ref, commit = _there(store, name)
    if store.refs.head() == ref:
        raise RefError(
            "HEAD names this branch", got=name, hint="make another one current first: cofuse branch NAME --use"
        )
    others = {c for under in NAMESPACES for n, c in store.refs.all(under).items() if under + n != ref}
    if not force and not any(is_ancestor(store.objects, commit, other) for other in sorted(others)):
        raise RefError(
            "no other branch or tag leads to its last commit",
            where=name,
            got=commit[:12],
            hint="merge or tag it; or --force, to let it go",
        )
    store.refs.update(ref, None, expect=commit)
    return commit


def _there(store: Store, name: str) -> tuple[str, str]:
    ref = HEADS + check_ref_name(name)
    commit = store.refs.get(ref)
    if commit is None:
        from ..document import nearest

        known = store.branches()
        raise RefError("no such branch", got=name, hint=nearest(name, known) if known else None)
    return ref, commit
