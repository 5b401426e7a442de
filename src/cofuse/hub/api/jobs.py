"""Work: claimed, kept and handed in by workers elsewhere; seen and tried again by maintainers."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field
from sqlalchemy import select
from starlette.responses import FileResponse

from ..access.audit import note
from ..database import Job, Upload
from ..faults import Unknown
from ..rounds.opening import due
from ..states import Done
from ..work import queue
from ..work.kinds import KINDS
from .depends import Administers, Maintains, TheHub
from .values import Before, Body, Id, Limit, Row, paged

router = APIRouter(tags=["work"])


class Wanted(Body):
    """Who claims, and which kinds of work."""

    worker: Annotated[str, Field(min_length=1, max_length=100)]
    kinds: Annotated[list[str] | None, Field(max_length=20)] = None


class Beat(Body):
    """A job goes on."""

    fence: Row
    progress: Annotated[str, Field(max_length=500)] = ""


class Answer(Body):
    """What a job gave."""

    fence: Row
    answer: dict[str, Any]


class Failure(Body):
    """Why a job could not be done."""

    fence: Row
    error: Annotated[str, Field(min_length=1, max_length=10_000)]
    final: bool = False


class Held(Body):
    """A job that is held."""

    fence: Row


@router.post("/work/claim")
def claim(hub: TheHub, visitor: Administers, wanted: Wanted) -> dict[str, Any]:
    """The next job; null where there is none."""
    if hub.may_look():
        due(hub)
    # Never a name that a worker on the hub's machine has.
    found = queue.claim(hub, f"{visitor.name}: {wanted.worker}", wanted.kinds or KINDS)
    return {"job": None if found is None else asdict(found)}


@router.post("/work/{job}/beat", status_code=204)
def beat(hub: TheHub, visitor: Administers, job: Id, wanted: Beat) -> None:
    """Go on holding it."""
    queue.beat(hub, job, wanted.fence, wanted.progress)


@router.post("/work/{job}/finish", status_code=204)
def finish(hub: TheHub, visitor: Administers, job: Id, wanted: Answer) -> None:
    """Hand in what it gave."""
    queue.finish(hub, job, wanted.fence, wanted.answer)


@router.post("/work/{job}/fail", status_code=204)
def fail(hub: TheHub, visitor: Administers, job: Id, wanted: Failure) -> None:
    """Say that it could not be done."""
    queue.fail(hub, job, wanted.fence, wanted.error, final=wanted.final)


@router.post("/work/{job}/return", status_code=204)
def give_back(hub: TheHub, visitor: Administers, job: Id, wanted: Held) -> None:
    """Give it back undone."""
    queue.give_back(hub, job, wanted.fence)


@router.get("/work/uploads/{key}", response_class=FileResponse)
def upload(hub: TheHub, visitor: Administers, key: str) -> FileResponse:
    """The bytes of a finished upload."""
    with hub.database.reading() as transaction:
        found = transaction.get(Upload, key)
        if found is None or not found.done:
            raise Unknown("no such upload")
    return FileResponse(hub.uploads / found.key)


@router.get("/repositories/{owner}/{name}/jobs")
def jobs(
    hub: TheHub,
    seen: Maintains,
    state: Done | None = None,
    before: Before = None,
    limit: Limit = 50,
) -> dict[str, Any]:
    """The repository's, newest first; `next` is the `before` of the page that follows."""
    query = select(Job).where(Job.repository_id == seen.repository.id).order_by(Job.id.desc()).limit(limit)
    if state is not None:
        query = query.where(Job.state == state)
    if before is not None:
        query = query.where(Job.id < before)
    with hub.database.reading() as transaction:
        return paged("jobs", transaction.scalars(query).all(), said, limit)


@router.post("/repositories/{owner}/{name}/jobs/{job}/retry")
def retry(hub: TheHub, seen: Maintains, job: Id) -> dict[str, Any]:
    """Try one again that has failed."""
    with hub.database.writing() as transaction:
        row = transaction.get(Job, job, with_for_update=True)
        if row is None or row.repository_id != seen.repository.id:
            raise Unknown("no such job", got=job)
        queue.retry(transaction, row)
        note(transaction, seen.visitor, "job.retry", row.key, repository=seen.repository.id)
        return said(row)


def said(job: Job) -> dict[str, Any]:
    """A job as JSON."""
    return {
        "id": job.id,
        "kind": job.kind,
        "key": job.key,
        "state": job.state,
        "attempts": job.attempts,
        "progress": job.progress,
        "error": job.error,
        "created": job.created,
        "updated": job.updated,
    }
