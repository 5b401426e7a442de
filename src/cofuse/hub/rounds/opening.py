"""Beginning rounds: when a policy says so, or a maintainer."""

from __future__ import annotations

import time
from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session as Transaction

from ...errors import CofuseError
from ...fuse import METHODS
from ..access.roles import Role
from ..contributions import ACCEPTED
from ..database import Branch, Contribution, Repository, Round
from ..faults import Conflict, Unavailable, Unknown
from ..hub import Hub
from ..logs import LOG
from ..policy import BranchPolicy, read_policy
from ..repositories import Seen
from ..states import Offered
from .course import begin
from .revoking import begin_due_revocation, has_due_revocation
from .stages import under_way


def due(hub: Hub) -> int:
    """Begin every round that is due; how many were.

    Any number of processes may do this at once: of one branch only one round can be under way.
    """
    with hub.database.reading() as look:
        waiting = [
            (row.repository_id, row.name)
            for row in look.scalars(select(Branch).order_by(Branch.repository_id, Branch.name))
            if _is_due(look, row)
        ]
    return sum(_begin(hub, *one) for one in waiting)


def _is_due(look: Transaction, row: Branch) -> bool:
    if under_way(look, row.repository_id, row.name) is not None:
        return False
    if has_due_revocation(look, row.repository_id, row.name):
        return True
    if row.paused is not None:
        return False
    try:
        policy = read_policy(row.policy)
    except CofuseError:  # of another version of the hub
        return False
    return bool(_ready(policy, choose(look, row.repository_id, row.name, policy)))


def _begin(hub: Hub, repository_id: int, branch: str) -> bool:
    try:
        with hub.database.writing() as transaction:
            repository = transaction.get(Repository, repository_id)
            # Taken first, so that in PostgreSQL whoever comes second sees what the first one did.
            row = transaction.get(Branch, (repository_id, branch), with_for_update=True)
            if repository is None or row is None or not _is_due(transaction, row):
                return False
            if begin_due_revocation(hub, transaction, repository, row) is not None:
                return True
            policy = read_policy(row.policy)
            chosen = _ready(policy, choose(transaction, repository_id, branch, policy))
            begin(hub, transaction, repository, branch, row.policy, chosen)
            return True
    except (Conflict, IntegrityError, Unavailable):
        return False
    except CofuseError as error:  # it would not be able to a second later either: a maintainer has to look
        LOG.error("a round cannot begin", extra={"repository": repository_id, "branch": branch, "error": error.line})
        with hub.database.writing() as transaction:
            row = transaction.get(Branch, (repository_id, branch))
            if row is not None:
                row.paused = f"a round cannot begin: {error.what}"
        return False


def choose(transaction: Transaction, repository: int, branch: str, policy: BranchPolicy) -> list[Contribution]:
    """The contributions that the next round of a branch would take, the oldest first."""
    query = (
        select(Contribution)
        .where(
            Contribution.repository_id == repository,
            Contribution.branch == branch,
            Contribution.state == Offered.OPEN,
            Contribution.commit.is_not(None),
        )
        .order_by(Contribution.number)
    )
    chosen: list[Contribution] = []
    by_account: dict[int, int] = {}
    weights: set[str] = set()  # a version that is there twice counts once
    for one in transaction.scalars(query):
        given = by_account.get(one.account_id, 0)
        if policy.review == "accept" and ACCEPTED not in one.labels:
            continue
        if one.commit in weights or (policy.round.each is not None and given >= policy.round.each):
            continue
        by_account[one.account_id] = given + 1
        weights.add(one.commit or "")
        chosen.append(one)
        if len(chosen) == policy.most:
            break
    return chosen


def _ready(policy: BranchPolicy, chosen: Sequence[Contribution]) -> Sequence[Contribution]:
    """What is chosen, if it is enough or has waited long enough."""
    wanted = METHODS[policy.fuse.method].statistics
    if wanted and not any(one.statistics for one in chosen):
        return ()
    if len(chosen) >= policy.round.contributions:
        return chosen
    longest = policy.round.longest
    if longest is None or len(chosen) < policy.least or min(one.created for one in chosen) + longest > time.time():
        return ()
    return chosen


def start(hub: Hub, transaction: Transaction, seen: Seen, branch: str) -> Round:
    """Begin a round now, with what there is; a branch that waits for a maintainer goes on.

    Raises:
        Conflict: one is under way, or there are too few contributions.
        Unknown: the branch has no policy.
    """
    seen.must(Role.MAINTAIN)
    row = transaction.get(Branch, (seen.repository.id, branch), with_for_update=True)
    repository = transaction.get(Repository, seen.repository.id)
    if row is None or repository is None:
        raise Unknown("the branch has no policy", got=branch, hint="cofuse policy set")
    row.paused = None
    revocation = begin_due_revocation(hub, transaction, repository, row)
    if revocation is not None:
        return revocation
    policy = read_policy(row.policy)
    chosen = choose(transaction, repository.id, branch, policy)
    if len(chosen) < policy.fuse.least:
        raise Conflict("too few contributions are open", got=len(chosen), expected=f"at least {policy.fuse.least}")
    return begin(hub, transaction, repository, branch, row.policy, chosen, seen.visitor)
