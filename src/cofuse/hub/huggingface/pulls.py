"""Contributions as clients know pull requests: listed, looked at, talked about, merged, closed."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from sqlalchemy import func, select
from sqlalchemy.orm import Session as Transaction

from .. import contributions
from ..api.depends import Reads, TheHub
from ..database import Account, Comment, Contribution
from ..faults import Invalid
from ..repositories import Seen
from ..states import Offered
from .lfs import Loose
from .models import moment
from .reading import MODEL
from .versions import DEFAULT, short

router = APIRouter(prefix=MODEL + "/discussions", tags=["hugging face"])
_PAGE = 50
Number = Annotated[int, Path(ge=0, lt=1 << 31)]
_STATUS = {
    Offered.DRAFT: "draft",
    Offered.RECEIVED: "draft",
    Offered.OPEN: "open",
    Offered.FUSING: "open",
    Offered.FUSED: "merged",
    Offered.REFUSED: "closed",
    Offered.WITHDRAWN: "closed",
    Offered.REVOKED: "closed",
}


class Said(Loose):
    """A comment."""

    comment: str = ""


class Opening(Loose):
    """A pull request whose files are about to come."""

    title: str
    description: str = ""
    pullRequest: bool = False  # noqa: N815 - what clients call it


class Status(Loose):
    """A status, and why."""

    status: str
    comment: str = ""


@router.get("")
def discussions(
    hub: TheHub,
    seen: Reads,
    kind: Annotated[str | None, Query(alias="type")] = None,
    status: str | None = None,
    author: str | None = None,
    p: Annotated[int, Query(ge=0, le=10**6)] = 0,
) -> dict[str, Any]:
    """Contributions, newest first."""
    query = select(Contribution).where(Contribution.repository_id == seen.repository.id)
    if kind == "discussion":
        query = query.where(Contribution.id < 0)  # there are none without weights
    if status in ("open", "closed"):
        wanted = [state for state, said in _STATUS.items() if (said in ("open", "draft")) == (status == "open")]
        query = query.where(Contribution.state.in_(wanted))
    if author is not None:
        query = query.join(Account, Contribution.account_id == Account.id).where(Account.name == author)
    with hub.database.reading() as transaction:
        count = transaction.scalar(select(func.count()).select_from(query.subquery())) or 0
        found = transaction.scalars(query.order_by(Contribution.number.desc()).offset(p * _PAGE).limit(_PAGE)).all()
        rows = [_row(seen, one) for one in found]
    return {"discussions": rows, "count": count, "start": p * _PAGE, "numClosedDiscussions": 0}


@router.post("")
def open_discussion(hub: TheHub, seen: Reads, wanted: Opening) -> dict[str, Any]:
    """Announce a contribution to the main branch; a commit to `refs/pr/NUMBER` brings what it is."""
    seen.visitor.known()
    if not wanted.pullRequest:
        raise Invalid("a discussion here is that of a contribution", expected="pullRequest: true")
    title = (wanted.title.strip().splitlines() or ["untitled"])[0][:200]
    with hub.database.writing() as transaction:
        made = contributions.begin(hub, transaction, seen, DEFAULT, title, wanted.description[:20_000])
        return {"num": made.number, "pullRequest": True}


@router.get("/{number}")
def discussion(hub: TheHub, seen: Reads, number: Number) -> dict[str, Any]:
    """A contribution, and what was said of it."""
    with hub.database.reading() as transaction:
        found = contributions.find(transaction, seen.repository, number)
        events = [_opening(found), *(_event(found, one) for one in contributions.comments(transaction, found))]
        said = _row(seen, found) | {
            "events": sorted(events, key=lambda event: str(event["createdAt"])),
            "filesWithConflicts": False,
            "changes": {"base": f"refs/heads/{found.branch}"},
            "diff": None,
        }
        if found.state == Offered.FUSED and found.commit:
            said["changes"]["mergeCommitId"] = short(found.commit)
    return said


@router.post("/{number}/comment")
def comment(hub: TheHub, seen: Reads, number: Number, said: Said) -> dict[str, Any]:
    """Say something."""
    with hub.database.writing() as transaction:
        made = contributions.comment(transaction, seen, number, said.comment)
        found = contributions.find(transaction, seen.repository, number)
        return {"newMessage": _event(found, made)}


@router.post("/{number}/status")
def status(hub: TheHub, seen: Reads, number: Number, wanted: Status) -> dict[str, Any]:
    """Close: a maintainer refuses, an author withdraws. Open again: a maintainer takes a refusal back."""
    with hub.database.writing() as transaction:
        found = contributions.find(transaction, seen.repository, number)
        if wanted.status == "open":
            contributions.accept(transaction, seen, number)
        elif wanted.status != "closed":
            raise Invalid("not a status", got=ascii(wanted.status[:40]), expected="open, closed")
        elif found.account_id == seen.visitor.known():
            _maybe_say(transaction, seen, number, wanted.comment)
            contributions.withdraw(transaction, seen, number)
        else:
            contributions.refuse(transaction, seen, number, wanted.comment or "closed by a maintainer")
        last = contributions.comments(transaction, found)[-1]
        return {"newStatus": _event(found, last)}


@router.post("/{number}/merge")
def merge(hub: TheHub, seen: Reads, number: Number, said: Said | None = None) -> dict[str, Any]:
    """Accept, as a maintainer: the next round fuses it."""
    with hub.database.writing() as transaction:
        _maybe_say(transaction, seen, number, said.comment if said else "")
        found = contributions.accept(transaction, seen, number)
        return {"status": _STATUS[Offered(found.state)]}


def _maybe_say(transaction: Transaction, seen: Seen, number: Number, text: str) -> None:
    if text.strip():
        contributions.comment(transaction, seen, number, text)


def _row(seen: Seen, found: Contribution) -> dict[str, Any]:
    return {
        "num": found.number,
        "title": found.title,
        "author": _author(found.account),
        "status": _STATUS[Offered(found.state)],
        "isPullRequest": True,
        "createdAt": moment(found.created),
        "repo": {"name": seen.repository.full_name, "type": "model"},
        "repoOwner": {"name": seen.repository.owner.name, "isParticipating": False, "type": "user"},
        "numComments": 0,
        "pinned": False,
    }


def _author(account: Account | None) -> dict[str, str]:
    return {"name": "cofuse" if account is None else account.name, "type": "user"}


def _opening(found: Contribution) -> dict[str, Any]:
    return _message(f"{found.id:024x}", found.account, found.created, found.message or found.title)


def _event(found: Contribution, said: Comment) -> dict[str, Any]:
    key = f"{said.id:024x}"
    if not said.event:
        return _message(key, said.account, said.created, said.body)
    new = {"withdrawn": "closed", "refused": "closed", "fused": "merged", "revoked": "closed"}.get(said.event, "open")
    base = {"id": key, "author": _author(said.account), "createdAt": moment(said.created)}
    return base | {"type": "status-change", "data": {"status": new, "reason": said.body}}


def _message(key: str, account: Account | None, created: float, body: str) -> dict[str, Any]:
    latest = {"raw": body, "html": "", "updatedAt": moment(created), "author": _author(account)}
    return {
        "id": key,
        "type": "comment",
        "author": _author(account),
        "createdAt": moment(created),
        "data": {"edited": False, "hidden": False, "latest": latest, "history": []},
    }
