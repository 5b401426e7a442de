"""What a maintainer decides of a round that waits for one."""

from __future__ import annotations

from typing import Literal

from sqlalchemy import select
from sqlalchemy.orm import Session as Transaction

from ..access.audit import note
from ..access.roles import Role
from ..database import Job, Round
from ..faults import Conflict, Unknown
from ..hub import Hub
from ..repositories import Seen
from ..states import Done, Stage
from ..work import queue
from .course import abandon, release
from .stages import JOBS, locked

Decision = Literal["publish", "abandon", "retry"]
_ALLOWED: dict[str, tuple[Stage, ...]] = {
    "publish": (Stage.HELD,),
    "abandon": (Stage.HELD, Stage.FAILED, Stage.FUSING, Stage.JUDGING),
    "retry": (Stage.FAILED,),
}


def find(transaction: Transaction, seen: Seen, round_id: int, *, change: bool = False) -> Round:
    """A round of a repository.

    Raises:
        Unknown: there is none.
    """
    found = locked(transaction, round_id) if change else transaction.get(Round, round_id)
    if found is None or found.repository_id != seen.repository.id:
        raise Unknown("no such round", got=round_id)
    return found


def decide(hub: Hub, transaction: Transaction, seen: Seen, round_id: int, decision: Decision) -> Round:
    """Publish a round that the gate has held, give one up, or try again what has failed.

    Raises:
        Conflict: the round is not in a state for that.
    """
    seen.must(Role.MAINTAIN)
    round_ = find(transaction, seen, round_id, change=True)
    if round_.state not in _ALLOWED[decision]:
        raise Conflict(
            f"a round that is {round_.state} cannot be decided so",
            got=decision,
            expected=" or ".join(d for d, states in _ALLOWED.items() if round_.state in states) or "nothing",
        )
    note(
        transaction,
        seen.visitor,
        f"round.{decision}",
        round_.branch,
        repository=round_.repository_id,
        round=round_.number,
    )
    if decision == "abandon":
        abandon(hub, transaction, round_, f"given up by {seen.visitor.name}")
    elif decision == "retry":
        _retry(transaction, round_)
    else:
        round_.plan = {**round_.plan, "attempt": round_.plan["attempt"] + 1}
        release(hub, transaction, round_, forced_by=seen.visitor.name)
    return round_


def _retry(transaction: Transaction, round_: Round) -> None:
    """The job of a round that has failed is done again."""
    attempt = round_.plan["attempt"]
    keys = {f"{kind}:{round_.id}:{attempt}": stage for stage, kind in JOBS.items()}
    job = transaction.scalar(
        select(Job).where(Job.key.in_(list(keys)), Job.state == Done.FAILED).order_by(Job.id.desc()).limit(1)
    )
    if job is None:
        raise Conflict("nothing of it has failed", got=f"round {round_.number}")
    queue.retry(transaction, job)
    round_.state, round_.reason = keys[job.key], ""
