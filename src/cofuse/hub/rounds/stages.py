"""A round's rows: the one under way, its shares, and the work of its stages."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session as Transaction

from ..database import Contribution, Job, Repository, Round, Share
from ..faults import Conflict, Unknown
from ..states import Stage
from ..work import queue

UNDER_WAY = (Stage.FUSING, Stage.JUDGING, Stage.PUBLISHING, Stage.HELD, Stage.FAILED)
JOBS = {Stage.FUSING: "fuse", Stage.JUDGING: "judge", Stage.PUBLISHING: "publish"}
FORMAT = 1  # of a round's record


def under_way(transaction: Transaction, repository: int, branch: str, *, lock: bool = False) -> Round | None:
    """The round of a branch that has not come to an end; locked, where it is about to be changed."""
    query = select(Round).where(Round.repository_id == repository, Round.branch == branch, Round.state.in_(UNDER_WAY))
    return transaction.scalar(query.with_for_update(of=Round) if lock else query)


def locked(transaction: Transaction, round_id: int) -> Round:
    """A round that is about to be changed.

    Raises:
        Unknown: there is none.
    """
    found = transaction.get(Round, round_id, with_for_update={"of": Round})
    if found is None:
        raise Unknown("no such round", got=round_id)
    return found


def new_round(
    transaction: Transaction,
    repository: Repository,
    branch: str,
    *,
    kind: str,
    base: str,
    policy: str,
    plan: Mapping[str, Any],
    state: Stage = Stage.FUSING,
) -> Round:
    """The next round of a branch; where two are begun at once the table lets only one be.

    Raises:
        Conflict: one is under way.
    """
    # In PostgreSQL, where others may be at the same: whoever comes second waits here, and then sees the first.
    transaction.execute(select(Repository.id).where(Repository.id == repository.id).with_for_update())
    other = under_way(transaction, repository.id, branch)
    if other is not None:
        raise Conflict("a round is under way", where=branch, got=f"round {other.number}: {other.state}")
    last = transaction.scalar(
        select(func.max(Round.number)).where(Round.repository_id == repository.id, Round.branch == branch)
    )
    now = time.time()
    made = Round(
        repository_id=repository.id,
        branch=branch,
        number=(last or 0) + 1,
        kind=kind,
        state=state,
        base=base,
        policy=policy,
        plan={"attempt": 1, **plan},
        verdict={},
        figures={},
        created=now,
        updated=now,
    )
    made.repository = repository
    transaction.add(made)
    transaction.flush()
    return made


def left_out(transaction: Transaction, round_: Round) -> list[dict[str, Any]]:
    """What was left out of a round, and why, as its record says."""
    return [
        {"contribution": one.contribution.number, "account": one.contribution.account.name, "why": one.dropped}
        for one in shares(transaction, round_)
        if one.dropped
    ]


def shares(transaction: Transaction, round_: Round) -> list[Share]:
    """A round's shares, in the order of the contributions' numbers."""
    query = select(Share).join(Contribution).where(Share.round_id == round_.id).order_by(Contribution.number)
    return list(transaction.scalars(query))


def ask(transaction: Transaction, round_: Round, state: Stage, payload: Mapping[str, Any]) -> None:
    """Go on to a stage, and ask for its work."""
    kind, attempt = JOBS[state], round_.plan["attempt"]
    own = {"repository": round_.repository.full_name, "round": round_.id, "attempt": attempt}
    round_.state, round_.reason, round_.updated = state, "", time.time()
    queue.ask(transaction, kind, f"{kind}:{round_.id}:{attempt}", round_.repository_id, {**payload, **own})


def at(transaction: Transaction, job: Job, state: Stage) -> Round | None:
    """The round that a job is of, if it still waits for it; a decision, or a revocation, may have come in between."""
    round_ = locked(transaction, job.payload["round"])
    waits = round_.state in (state, Stage.FAILED) and round_.plan["attempt"] == job.payload["attempt"]
    return round_ if waits else None
