"""What a contribution starts from: a commit that its branch has, or had."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session as Transaction

from ...errors import CofuseError
from ...store import Store
from ...store.ancestry import is_ancestor, merge_bases
from ...store.objects import ID
from ...store.refs import HEADS
from ..database import Release, Repository, Round
from ..faults import Invalid, Refused, Unknown


def base_of(
    transaction: Transaction,
    store: Store,
    repository: Repository,
    branch: str,
    base: str | None = None,
    commit: str | None = None,
) -> str:
    """The commit that a contribution starts from.

    Raises:
        Unknown: no such branch, or no such commit.
        Refused: the branch never had it.
    """
    try:
        tip = store.refs.get(HEADS + branch)
    except CofuseError:
        tip = None
    if tip is None:
        raise Unknown("no such branch", where=repository.full_name, got=ascii(branch[:80]))
    if commit is not None:
        check_commit(store, commit, "the commit")
    if base is None:
        base = tip if commit is None else next(iter(merge_bases(store.objects, commit, tip)), None)
        if base is None:
            raise Refused("the commit does not come from the branch", got=commit, expected=f"one made on {branch}")
        if base == commit:
            raise Refused("the commit is one of the branch already", got=commit, expected="a new one")
        return base
    check_commit(store, base, "the base")
    if not (is_ancestor(store.objects, base, tip) or _was(transaction, repository, branch, base)):
        raise Refused(
            "the base is none that the branch has, or had",
            where=f"{repository.full_name}@{branch}",
            got=base,
            expected=f"its tip, {tip}, or a commit before it",
            hint="train from the branch's current version, and offer that",
        )
    if commit is not None and (base == commit or not is_ancestor(store.objects, base, commit)):
        raise Refused("the commit does not come from its base", got=commit, expected=f"one made on {base}")
    return base


def check_commit(store: Store, commit: str, what: str) -> None:
    """Refuse what is no commit of a store.

    Raises:
        Invalid: it is no id.
        Refused: there is no such commit.
    """
    if not ID.fullmatch(commit):
        raise Invalid(f"{what} is no commit id", got=ascii(commit[:80]), expected="64 hexadecimal digits")
    if commit not in store.objects or store.objects.envelope(commit).head.kind != "commit":
        raise Refused(f"{what} is not in the repository", got=commit, hint="deliver it first: cofuse push")


def _was(transaction: Transaction, repository: Repository, branch: str, commit: str) -> bool:
    """Whether a branch was at a commit that it has been taken back from since."""
    released = select(Release.id).where(
        Release.repository_id == repository.id, Release.branch == branch, Release.commit == commit
    )
    begun = select(Round.id).where(Round.repository_id == repository.id, Round.branch == branch, Round.base == commit)
    return transaction.scalar(released.limit(1)) is not None or transaction.scalar(begun.limit(1)) is not None
