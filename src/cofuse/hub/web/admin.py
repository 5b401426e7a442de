"""For administrators: accounts and their quotas, tokens, jobs, the audit log."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from sqlalchemy import and_, func, or_, select
from starlette.responses import Response

from ..access.audit import note
from ..access.roles import WORDS
from ..access.tokens import find_account
from ..api import accounts
from ..api.values import Before, Id
from ..database import Account, Audit, Job, Repository, Token
from ..faults import Unknown
from ..states import Done
from ..work import queue
from .depends import Administers, Sent
from .page import Asked, link
from .paging import After, mark, read_mark

router = APIRouter(prefix="/admin", include_in_schema=False)
ROWS = 50  # of a page
_GIB = 1024**3


@router.get("")
def people(page: Administers, before: Before = None, q: Annotated[str, Query(max_length=96)] = "") -> Response:
    """Accounts, the newest first."""
    query = select(Account).order_by(Account.id.desc()).limit(ROWS + 1)
    if before is not None:
        query = query.where(Account.id < before)
    if q:
        query = query.where(Account.name.icontains(q, autoescape=True))
    with page.hub.database.reading() as transaction:
        found = list(transaction.scalars(query))
        taken = (
            select(Repository.owner_id, func.sum(Repository.bytes))
            .where(Repository.owner_id.in_([one.id for one in found]))
            .group_by(Repository.owner_id)
        )
        used = {owner: int(total or 0) for owner, total in transaction.execute(taken)}
    return page.show(
        "admin-accounts",
        tab="accounts",
        accounts=found[:ROWS],
        used=used,
        q=q,
        before=before,
        roles=WORDS,
        older=link("admin", before=found[ROWS - 1].id, q=q) if len(found) > ROWS else None,
    )


@router.post("/accounts")
def create(page: Administers, sent: Sent) -> Response:
    """Make an account."""
    wanted = accounts.NewAccount(
        name=sent.text("name", 96, needed=True),
        role=sent.text("role", 16, needed=True),
        organisation=sent.ticked("organisation"),
        quota=_bytes(sent.number("quota")),
    )
    accounts.create_account(page.hub, page.visitor, wanted)
    return page.go(link("admin", "accounts", wanted.name), "account")


@router.get("/accounts/{name}")
def account(page: Administers, name: str) -> Response:
    """One account, and its tokens."""
    return _account(page, name)


@router.post("/accounts/{name}")
def change(page: Administers, sent: Sent, name: str) -> Response:
    """Change what an account may do and keep, and whether it is let in."""
    wanted = accounts.AccountChange(
        role=sent.text("role", 16, needed=True), quota=_bytes(sent.number("quota")), disabled=sent.ticked("disabled")
    )
    accounts.change_account(page.hub, page.visitor, name, wanted)
    return page.go(link("admin", "accounts", name), "saved")


@router.post("/accounts/{name}/tokens")
def create_token(page: Administers, sent: Sent, name: str) -> Response:
    """Make a token for somebody, and show it this once."""
    wanted = accounts.NewToken(
        scope=sent.text("scope", 16, needed=True),
        label=sent.text("label", 200),
        days=sent.number("days", most=3650) or None,
        account=name,
    )
    return _account(page, name, accounts.create_token(page.hub, page.visitor, wanted))


@router.post("/accounts/{name}/tokens/{token_id}/revoke")
def revoke_token(page: Administers, sent: Sent, name: str, token_id: Id) -> Response:
    """Revoke somebody's token."""
    accounts.revoke(page.hub, page.visitor, token_id)
    return page.go(link("admin", "accounts", name), "unmade")


@router.get("/jobs")
def jobs(
    page: Administers,
    state: Annotated[str, Query(max_length=16)] = Done.FAILED.value,
    before: After = "",
) -> Response:
    """Work in one state, that which became ready last first."""
    query = select(Job).where(Job.state == state)
    place = read_mark(before)
    if place is not None:
        ready, last = place
        query = query.where(or_(Job.ready < ready, and_(Job.ready == ready, Job.id < last)))
    with page.hub.database.reading() as transaction:
        found = list(transaction.scalars(query.order_by(Job.ready.desc(), Job.id.desc()).limit(ROWS + 1)))
        wanted = {job.repository_id for job in found}
        names = {
            one.id: one.full_name for one in transaction.scalars(select(Repository).where(Repository.id.in_(wanted)))
        }
    end = found[ROWS - 1] if len(found) > ROWS else None
    return page.show(
        "admin-jobs",
        tab="jobs",
        jobs=found[:ROWS],
        names=names,
        state=state,
        states=list(Done),
        before=before,
        older=None if end is None else link("admin", "jobs", state=state, before=mark(end.ready, end.id)),
    )


@router.post("/jobs/{job_id}/retry")
def retry(page: Administers, sent: Sent, job_id: Id) -> Response:
    """Try a job again."""
    with page.hub.database.writing() as transaction:
        job = transaction.get(Job, job_id, with_for_update=True)
        if job is None:
            raise Unknown("no such job", got=job_id)
        queue.retry(transaction, job)
        note(transaction, page.visitor, "job.retry", f"{job.kind} {job.id}", repository=job.repository_id)
    return page.go(link("admin", "jobs"), "retried")


@router.get("/audit")
def audit(page: Administers, before: Before = None) -> Response:
    """What was done, the latest first."""
    query = select(Audit).order_by(Audit.id.desc()).limit(ROWS + 1)
    with page.hub.database.reading() as transaction:
        found = list(transaction.scalars(query if before is None else query.where(Audit.id < before)))
    return page.show(
        "admin-audit",
        tab="audit",
        rows=found[:ROWS],
        before=before,
        older=link("admin", "audit", before=found[ROWS - 1].id) if len(found) > ROWS else None,
    )


def _account(page: Asked, name: str, made: dict[str, object] | None = None) -> Response:
    with page.hub.database.reading() as transaction:
        found = find_account(transaction, name)
        if found is None:
            raise Unknown("no such account", got=ascii(name[:100]))
        query = select(Token).where(Token.account_id == found.id).order_by(Token.id.desc()).limit(200)
        tokens = list(transaction.scalars(query))
        used = transaction.scalar(select(func.sum(Repository.bytes)).where(Repository.owner_id == found.id)) or 0
    return page.show("admin-account", tab="accounts", account=found, tokens=tokens, used=used, made=made, roles=WORDS)


def _bytes(gib: float | None) -> int | None:
    return None if gib is None else min(round(gib * _GIB), 2**62)
