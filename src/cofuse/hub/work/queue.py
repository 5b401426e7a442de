"""Jobs as rows: asked for, claimed by lease, done once.

Who claims a job gets a lease and a fence. The lease is kept alive by beats; when it ends, another worker takes the job up
with a higher fence, and an answer under the old one is refused. What an answer means is settled in the transaction that
marks the job done, so a job is done exactly once, whoever dies when.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, and_, or_, select, update
from sqlalchemy.orm import Session as Transaction

from ...errors import CofuseError
from ..database import Job
from ..faults import Conflict, Unavailable, Unknown
from ..hub import Hub
from ..logs import LOG
from ..states import Done
from .kinds import KINDS, kind_of

DEATHS = 20  # of its workers, after which a job is taken for what kills them
_BACKOFF = 2.0  # seconds before the second try, doubled with each more
_MOST = 300.0


@dataclass(frozen=True, slots=True)
class Claimed:
    """A job as the worker that holds it has it."""

    id: int
    fence: int
    kind: str
    key: str
    payload: Mapping[str, Any]
    lease: float  # seconds, from the claim or the last beat


def ask(
    transaction: Transaction,
    kind: str,
    key: str,
    repository_id: int,
    payload: Mapping[str, Any],
    *,
    ready: float | None = None,
) -> Job:
    """Ask for work; the same key asked for twice is one job, whatever became of it.

    Args:
        transaction: where.
        kind: a row of `KINDS`.
        key: names the work.
        repository_id: whose it is.
        payload: what it depends on, as JSON.
        ready: not before this time.
    """
    there = transaction.scalar(select(Job).where(Job.key == key))
    if there is not None:
        return there
    if kind not in KINDS:
        raise Unknown("no such kind of work", got=kind, expected=", ".join(KINDS))
    now = time.time()
    job = Job(
        kind=kind,
        key=key,
        repository_id=repository_id,
        payload=dict(payload),
        state=Done.WAITING,
        ready=now if ready is None else ready,
        created=now,
        updated=now,
    )
    transaction.add(job)
    transaction.flush()
    return job


def claim(hub: Hub, worker: str, kinds: Iterable[str] = KINDS) -> Claimed | None:
    """Take the job that has waited longest, or one whose worker's lease has ended; None where there is nothing to do.

    Args:
        hub: whose.
        worker: who takes it.
        kinds: of these alone.
    """
    kinds = tuple(kinds)
    with hub.database.reading() as look:  # an idle worker takes no writer's turn
        if look.scalar(_free(kinds).with_only_columns(Job.id)) is None:
            return None
    while True:
        with hub.database.writing() as transaction:
            job = transaction.scalar(_free(kinds).with_for_update(skip_locked=True))
            if job is None:
                return None
            if job.state == Done.RUNNING and job.attempts >= DEATHS:
                job.fence += 1
                job.error = f"its worker died {job.attempts} times, or was too slow to say that it goes on"
                _end(hub, transaction, job)
                continue
            now = time.time()
            job.state, job.worker, job.leased = Done.RUNNING, worker, now + hub.settings.lease
            job.fence, job.attempts, job.updated, job.progress = job.fence + 1, job.attempts + 1, now, ""
            return Claimed(job.id, job.fence, job.kind, job.key, dict(job.payload), hub.settings.lease)


def _free(kinds: tuple[str, ...]) -> Select[Job]:
    now = time.time()
    waits = and_(Job.state == Done.WAITING, Job.ready <= now)
    lost = and_(Job.state == Done.RUNNING, Job.leased < now)
    return select(Job).where(or_(waits, lost), Job.kind.in_(kinds)).order_by(Job.ready, Job.id).limit(1)


def beat(hub: Hub, job: int, fence: int, progress: str = "") -> None:
    """Go on holding a job.

    Raises:
        Conflict: it is not held any more.
    """
    with hub.database.writing() as transaction:
        now = time.time()
        held = transaction.execute(
            update(Job)
            .where(Job.id == job, Job.fence == fence, Job.state == Done.RUNNING)
            .values(leased=now + hub.settings.lease, updated=now, progress=progress[:500])
        )
        if not held.rowcount:  # type: ignore[attr-defined]
            raise _late(job)


def finish(hub: Hub, job: int, fence: int, answer: Mapping[str, Any]) -> None:
    """Hand in what a job gave; handing it in again is no error.

    Raises:
        Conflict: it is not held any more: another worker has it, or has done it.
    """
    try:
        with hub.database.writing() as transaction:
            row = _held(transaction, job, fence, Done.DONE)
            if row.state == Done.DONE:
                return
            kind_of(row.kind).settle(hub, transaction, row, dict(answer))
            row.state, row.leased, row.error, row.progress, row.updated = Done.DONE, None, "", "", time.time()
    except (Conflict, Unavailable):
        raise
    except CofuseError as error:  # it means nothing: that is final
        LOG.error("an answer could not be settled", extra={"job": job, "error": error.line})
        fail(hub, job, fence, str(error), final=True)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):  # a worker elsewhere may say anything
        LOG.exception("an answer could not be settled", extra={"job": job})
        fail(hub, job, fence, "the answer is not what such a job gives", final=True)


def fail(hub: Hub, job: int, fence: int, error: str, *, final: bool) -> None:
    """Say that a job could not be done; it is tried again unless that is final, or it has been tried often enough.

    Raises:
        Conflict: it is not held any more.
    """
    with hub.database.writing() as transaction:
        row = _held(transaction, job, fence, Done.FAILED)
        if row.state == Done.FAILED:
            return
        row.error, row.updated = error[:2000], time.time()
        if final or row.attempts >= kind_of(row.kind).attempts:
            _end(hub, transaction, row)
        else:
            _wait(row, min(_MOST, _BACKOFF * 2 ** (row.attempts - 1)))


def give_back(hub: Hub, job: int, fence: int) -> None:
    """Give a job back undone, as if it had not been claimed: the worker stops.

    Raises:
        Conflict: it is not held any more.
    """
    with hub.database.writing() as transaction:
        row = _held(transaction, job, fence, Done.WAITING)
        if row.state == Done.RUNNING:
            row.attempts -= 1
            _wait(row, 0)


def release(hub: Hub, worker: str) -> int:
    """Give back at once what a worker held that is known to be dead; how many jobs that were."""
    with hub.database.writing() as transaction:
        rows = transaction.scalars(
            select(Job).where(Job.state == Done.RUNNING, Job.worker == worker).with_for_update(skip_locked=True)
        ).all()
        for row in rows:
            row.leased = 0.0  # still counted as a death, where it is claimed
        return len(rows)


def retry(transaction: Transaction, job: Job) -> None:
    """Try a job again that has failed.

    Raises:
        Conflict: it has not.
    """
    if job.state != Done.FAILED:
        raise Conflict("only what has failed can be tried again", got=f"job {job.id} is {job.state}")
    job.attempts = 0
    _wait(job, 0)


def forget(transaction: Transaction, keys: Iterable[str]) -> None:
    """Let jobs go that nobody needs any more; a worker that has one learns of it at its next beat."""
    # One that is being handed in at this moment is not waited for: it waits for whoever calls this.
    query = select(Job).where(Job.key.in_(list(keys)), Job.state.in_((Done.WAITING, Done.RUNNING, Done.FAILED)))
    for job in transaction.scalars(query.with_for_update(skip_locked=True)):
        job.state, job.fence, job.leased = Done.DONE, job.fence + 1, None
        job.error, job.updated = "not needed any more", time.time()


def _end(hub: Hub, transaction: Transaction, job: Job) -> None:
    job.state, job.leased, job.progress, job.updated = Done.FAILED, None, "", time.time()
    LOG.warning("a job failed", extra={"job": job.id, "kind": job.kind, "error": job.error.splitlines()[0]})
    kind_of(job.kind).fail(hub, transaction, job)


def _wait(job: Job, seconds: float) -> None:
    now = time.time()
    job.state, job.leased, job.worker, job.progress = Done.WAITING, None, "", ""
    job.ready, job.updated = now + seconds, now


def _held(transaction: Transaction, job: int, fence: int, already: Done) -> Job:
    row = transaction.get(Job, job, with_for_update=True)
    if row is None or row.fence != fence or row.state not in (Done.RUNNING, already):
        raise _late(job)
    return row


def _late(job: int) -> Conflict:
    return Conflict("the job is not held any more", where=f"job {job}", hint="another worker has taken it up")
