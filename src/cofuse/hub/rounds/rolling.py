"""Rolling back: an earlier version's files on top of the branch, as a release of its own."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session as Transaction

from ...store.refs import HEADS
from ..access.audit import note
from ..access.roles import Role
from ..database import Branch, Release, Repository, Round
from ..faults import Conflict, Unknown
from ..hub import Hub
from ..repositories import Seen
from ..states import Stage
from .course import abandon, release
from .revoking import still_in
from .stages import FORMAT, new_round, under_way
from .versions import step_between


def roll_back(hub: Hub, transaction: Transaction, seen: Seen, version: str) -> Round:
    """Release an earlier version again, every file as it was; a round under way on its branch is given up.

    Raises:
        Unknown: there is no such release.
        Conflict: it is the branch's version, it holds what was revoked since, or a release is being published at this moment.
    """
    seen.must(Role.MAINTAIN)
    repository = transaction.get(Repository, seen.repository.id)
    query = select(Release).where(Release.repository_id == seen.repository.id)
    found = transaction.scalar(query.where(Release.version == version))
    if found is None or repository is None:
        raise Unknown("no such release", got=version[:40])
    store = hub.store(repository)
    tip = store.refs.get(HEADS + found.branch)
    if tip is None:
        raise Conflict("the branch is gone", got=found.branch)
    if store.load_commit(tip).tree == store.load_commit(found.commit).tree:
        raise Conflict("the branch has this version", got=version)
    tainted = still_in(transaction, found)
    if tainted:
        raise Conflict(
            "the version holds what was revoked since",
            got=", ".join(f"#{number}" for number in tainted),
            hint="roll back to one before it, or after its revocation",
        )
    other = under_way(transaction, repository.id, found.branch, lock=True)
    if other is not None:
        if other.state == Stage.PUBLISHING:
            raise Conflict("a release is being published", got=other.version, hint="try again in a moment")
        abandon(hub, transaction, other, f"rolled back to {version}", pause=False)
    row = transaction.get(Branch, (repository.id, found.branch))
    if row is not None:
        row.paused = f"rolled back to {version}"  # what led away from it is to be looked at first
    now = transaction.scalar(query.where(Release.branch == found.branch).order_by(Release.id.desc()).limit(1))
    earlier = None if found.round_id is None else transaction.get(Round, found.round_id)
    message = f"rolled back to {version}"
    plan = {"to": version, "commit": found.commit, "round": 0 if earlier is None else earlier.number}
    made = new_round(transaction, repository, found.branch, kind="rollback", base=tip, policy="", plan=plan)
    record = {
        "format": FORMAT,
        "kind": "rollback",
        "model": repository.full_name,
        "branch": found.branch,
        "number": made.number,
        "method": "nothing",
        "inputs": [],
        "left_out": [],
        "steps": [],
        "result": found.commit,
        "approximate": False,
    }
    made.plan = {**made.plan, "make": {"base": tip, "message": message, "record": record}}
    made.verdict = {
        "state": "skipped",
        "step": step_between(version, now.version) if now else None,
        "reasons": [message],
    }
    note(transaction, seen.visitor, "release.rollback", version, repository=repository.id, branch=found.branch)
    release(hub, transaction, made)
    return made
