"""Policies of branches: set, removed."""

from __future__ import annotations

import time

from sqlalchemy.orm import Session as Transaction

from ...errors import RefError
from ...store.refs import check_ref_name
from ..access.audit import note
from ..access.roles import Role
from ..database import Branch
from ..faults import Invalid, Unknown
from ..policy import read_policy
from ..repositories import Seen


def set_policy(transaction: Transaction, seen: Seen, branch: str, policy: str) -> Branch:
    """Give a branch a policy, in place of the one that it has; rounds under way keep theirs. A branch that waits goes on.

    Raises:
        DocumentError: the policy is wrong; names the line.
        Invalid: the branch's name is not allowed.
    """
    seen.must(Role.MAINTAIN)
    read_policy(policy)
    try:
        check_ref_name(branch)
    except RefError as error:
        raise Invalid("not a branch's name", got=error.got, expected=error.expected) from None
    if len(branch) > 200:
        raise Invalid("the branch's name is too long", expected="at most 200 characters")
    row = transaction.get(Branch, (seen.repository.id, branch), with_for_update=True)
    if row is None:
        row = Branch(repository_id=seen.repository.id, name=branch, policy=policy, updated=time.time(), paused=None)
        transaction.add(row)
    row.policy, row.updated, row.paused = policy, time.time(), None
    note(transaction, seen.visitor, "policy.set", branch, repository=seen.repository.id)
    transaction.flush()
    return row


def remove_policy(transaction: Transaction, seen: Seen, branch: str) -> None:
    """Let no more rounds begin by themselves; one under way goes on.

    Raises:
        Unknown: there is none.
    """
    seen.must(Role.MAINTAIN)
    transaction.delete(find(transaction, seen, branch))
    note(transaction, seen.visitor, "policy.remove", branch, repository=seen.repository.id)


def find(transaction: Transaction, seen: Seen, branch: str) -> Branch:
    """A branch that has a policy.

    Raises:
        Unknown: it has none.
    """
    row = transaction.get(Branch, (seen.repository.id, branch))
    if row is None:
        raise Unknown("the branch has no policy", got=branch[:200])
    return row
