"""What maintainers and authors do with a contribution: comment, label, accept, refuse, withdraw, have it looked at again."""

from __future__ import annotations

import time

from sqlalchemy import func, select
from sqlalchemy.orm import Session as Transaction

from ..access.audit import note
from ..access.roles import Role
from ..access.visitor import Visitor
from ..database import Account, Comment, Contribution, Job
from ..faults import Conflict, Denied, Invalid
from ..hub import Hub
from ..repositories import Seen
from ..states import Done, Offered
from .offering import ACCEPTED, ask_screening
from .reading import find
from .typed import MAX_TEXT, checked_labels, checked_text

MAX_COMMENTS = 2000  # of a contribution


def tell(
    transaction: Transaction, contribution: Contribution, event: str, body: str = "", visitor: Visitor | None = None
) -> Comment:
    """Write down what happened to a contribution; for the hub itself, without a visitor."""
    account = None if visitor is None else visitor.account
    made = Comment(contribution_id=contribution.id, account_id=account, event=event, body=body, created=time.time())
    made.account = None if account is None else transaction.get(Account, account)
    transaction.add(made)
    contribution.updated = made.created
    transaction.flush()
    return made


def comment(transaction: Transaction, seen: Seen, number: int, body: str) -> Comment:
    """Say something of a contribution.

    Raises:
        Unauthenticated: nobody has said who they are.
        Invalid: nothing is said, or too much.
    """
    seen.visitor.known()
    if not checked_text("body", body, MAX_TEXT).strip():
        raise Invalid("nothing is said")
    contribution = find(transaction, seen.repository, number, locked=True)
    there = transaction.scalar(select(func.count()).where(Comment.contribution_id == contribution.id))
    if (there or 0) >= MAX_COMMENTS:
        raise Conflict("the discussion is too long", expected=f"at most {MAX_COMMENTS} comments")
    return tell(transaction, contribution, "", body, seen.visitor)


def label(transaction: Transaction, seen: Seen, number: int, labels: list[str]) -> Contribution:
    """Give a contribution other labels: its author, or a maintainer.

    Raises:
        Denied: somebody else.
    """
    contribution = _own(transaction, seen, number)
    wanted = [one for one in checked_labels(labels) if one != ACCEPTED]
    contribution.labels = [*wanted, *([ACCEPTED] if ACCEPTED in contribution.labels else [])]
    tell(transaction, contribution, "labelled", ", ".join(contribution.labels), seen.visitor)
    _note(transaction, seen, "label", contribution, labels=contribution.labels)
    return contribution


def withdraw(transaction: Transaction, seen: Seen, number: int) -> Contribution:
    """Take a contribution back, so that no round takes it: its author, or a maintainer. Doing it again is no error.

    Raises:
        Denied: somebody else.
        Conflict: a round has it, or had it.
    """
    contribution = _own(transaction, seen, number)
    if contribution.state == Offered.WITHDRAWN:
        return contribution
    _must_be(contribution, "withdrawn", Offered.DRAFT, Offered.RECEIVED, Offered.OPEN, Offered.REFUSED)
    contribution.state = Offered.WITHDRAWN
    tell(transaction, contribution, "withdrawn", visitor=seen.visitor)
    _note(transaction, seen, "withdraw", contribution)
    return contribution


def accept(transaction: Transaction, seen: Seen, number: int) -> Contribution:
    """Say, as a maintainer, that a contribution shall be fused, whatever was warned of; takes a refusal of theirs back.

    What a check has refused stays refused: it can be looked at again (`retry`), not waved through.

    Raises:
        Denied: no maintainer.
        Conflict: it is neither open nor refused by a maintainer.
    """
    seen.must(Role.MAINTAIN)
    contribution = find(transaction, seen.repository, number, locked=True)
    if contribution.state == Offered.REFUSED and contribution.commit is None:
        raise Conflict(
            "a check refused it", got=contribution.reason, hint="what was refused by a check can be tried again"
        )
    _must_be(contribution, "accepted", Offered.OPEN, Offered.REFUSED)
    contribution.state, contribution.reason = Offered.OPEN, ""
    contribution.labels = list(dict.fromkeys([*contribution.labels, ACCEPTED]))
    tell(transaction, contribution, "accepted", visitor=seen.visitor)
    _note(transaction, seen, "accept", contribution)
    return contribution


def refuse(transaction: Transaction, seen: Seen, number: int, reason: str) -> Contribution:
    """Refuse a contribution, as a maintainer, and say why.

    Raises:
        Denied: no maintainer.
        Invalid: no reason is given.
        Conflict: a round has it, or had it.
    """
    seen.must(Role.MAINTAIN)
    if not checked_text("reason", reason, 2000).strip():
        raise Invalid("a refusal needs a reason")
    contribution = find(transaction, seen.repository, number, locked=True)
    _must_be(contribution, "refused", Offered.DRAFT, Offered.RECEIVED, Offered.OPEN)
    contribution.state, contribution.reason = Offered.REFUSED, reason
    contribution.labels = [one for one in contribution.labels if one != ACCEPTED]
    tell(transaction, contribution, "refused", reason, seen.visitor)
    _note(transaction, seen, "refuse", contribution, reason=reason[:500])
    return contribution


def retry(hub: Hub, transaction: Transaction, seen: Seen, number: int) -> Contribution:
    """Have a contribution looked at again, as a maintainer or its author: one that a check refused, or whose look failed.

    What has been committed is compared with the others again; its files are not needed for that.

    Raises:
        Denied: somebody else.
        Conflict: it is being looked at, or in a round, or a maintainer has refused it.
    """
    from ..work.comparing import ask_comparing  # kinds of work stand above what they work on

    contribution = _own(transaction, seen, number)
    _must_be(contribution, "looked at again", Offered.RECEIVED, Offered.REFUSED)
    last = select(Comment).where(Comment.contribution_id == contribution.id, Comment.event == "refused")
    refused = transaction.scalar(last.order_by(Comment.id.desc()).limit(1))
    if contribution.state == Offered.REFUSED and refused is not None and refused.account_id is not None:
        raise Conflict(
            "a maintainer refused it", got=contribution.reason, hint="a maintainer may accept it all the same"
        )
    jobs = _jobs(transaction, contribution)
    if any(job.state in (Done.WAITING, Done.RUNNING) for job in jobs):
        raise Conflict("it is being looked at", got=f"#{number}")
    contribution.state, contribution.reason = Offered.RECEIVED, ""
    if contribution.commit is None:
        ask_screening(transaction, hub.store(contribution.repository), contribution, attempt=len(jobs))
    else:
        ask_comparing(transaction, contribution, f"{contribution.id}:{len(jobs)}")
    tell(transaction, contribution, "retried", visitor=seen.visitor)
    _note(transaction, seen, "retry", contribution)
    return contribution


def _jobs(transaction: Transaction, contribution: Contribution) -> list[Job]:
    """The work that was asked for to look at it."""
    query = select(Job).where(
        Job.repository_id == contribution.repository_id,
        Job.kind.in_(["screen", "compare"]),
        Job.key.like(f"%:{contribution.id}%"),
    )
    return [job for job in transaction.scalars(query) if job.key.split(":")[1] == str(contribution.id)]


def _own(transaction: Transaction, seen: Seen, number: int) -> Contribution:
    contribution = find(transaction, seen.repository, number, locked=True)
    mine = contribution.account_id == seen.visitor.known() and seen.role >= Role.CONTRIBUTE
    if not mine and seen.role < Role.MAINTAIN:
        raise Denied("not allowed", got=seen.visitor.name, expected=f"{contribution.account.name}, or a maintainer")
    return contribution


def _must_be(contribution: Contribution, what: str, *states: Offered) -> None:
    if contribution.state not in states:
        raise Conflict(
            f"it cannot be {what}",
            where=f"#{contribution.number}",
            got=contribution.state,
            expected=" or ".join(states),
        )


def _note(transaction: Transaction, seen: Seen, action: str, contribution: Contribution, **detail: object) -> None:
    own = seen.repository.id
    note(transaction, seen.visitor, f"contribution.{action}", contribution.full_name, repository=own, **detail)
