"""Contributions: the list, and the page of one, where it is talked about and decided."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Query
from markupsafe import escape
from sqlalchemy import select
from sqlalchemy.orm import Session as Transaction
from starlette.responses import Response

from .. import contributions as service
from ..access.roles import Role
from ..api.values import After, Before, Id
from ..database import Branch, Check, Comment, Contribution, Evaluation, Job, Release, Round, Share
from ..faults import Unknown
from ..hub import Hub
from ..repositories import Seen
from ..states import Done, Offered
from .charts.compared import Pair, Score, draw_compared
from .charts.heat import Change, draw_heat
from .depends import Form, Reads, Sent

router = APIRouter(include_in_schema=False)
ROWS = 40  # of a page
_COMMENTS, _ROOM = 100, 60_000  # of a page; bytes of them
# What can be done with one, and how it is called once it is done.
Act = Callable[[Hub, Transaction, Seen, int, Form], object]
ACTS: Mapping[str, tuple[str, Act]] = {
    "comment": (
        "commented",
        lambda hub, t, seen, number, form: service.comment(t, seen, number, form.text("body", 20_000)),
    ),
    "label": ("labelled", lambda hub, t, seen, number, form: service.label(t, seen, number, _labels(form))),
    "accept": ("accepted", lambda hub, t, seen, number, form: service.accept(t, seen, number)),
    "refuse": (
        "refused",
        lambda hub, t, seen, number, form: service.refuse(t, seen, number, form.text("reason", 2000)),
    ),
    "withdraw": ("withdrawn", lambda hub, t, seen, number, form: service.withdraw(t, seen, number)),
    "retry": ("retried", lambda hub, t, seen, number, form: service.retry(hub, t, seen, number)),
}


@router.get("/{owner}/{name}/contributions")
def index(
    page: Reads,
    state: Annotated[str, Query(max_length=16)] = "",
    branch: Annotated[str, Query(max_length=200)] = "",
    account: Annotated[str, Query(max_length=96)] = "",
    before: Before = None,
) -> Response:
    """The list, the newest first."""
    with page.hub.database.reading() as transaction:
        found = service.page(
            transaction,
            page.seen.repository,
            state=state or None,
            branch=branch or None,
            account=account.strip() or None,
            before=before,
            limit=ROWS + 1,
        )
        query = (
            select(Branch.name).where(Branch.repository_id == page.seen.repository.id).order_by(Branch.name).limit(50)
        )
        branches = list(transaction.scalars(query))
    asked = {"state": state, "branch": branch, "account": account}
    return page.show(
        "contributions",
        tab="contributions",
        rows=found[:ROWS],
        asked=asked,
        states=list(Offered),
        branches=branches,
        before=before,
        older=page.at("contributions", **asked, before=found[ROWS - 1].number) if len(found) > ROWS else None,
    )


@router.get("/{owner}/{name}/discussions/{number}")
def discussion(page: Reads, number: Id) -> Response:
    """Where Hugging Face's clients say that a pull request is."""
    return page.go(page.at("contributions", number))


@router.get("/{owner}/{name}/contributions/{number}")
def contribution(page: Reads, number: Id, after: After = 0) -> Response:
    """One: what it is, what was found, what was said, and what can be done with it."""
    repository, visitor = page.seen.repository, page.visitor
    with page.hub.database.reading() as transaction:
        one = service.find(transaction, repository, number)
        checks = list(service.checks(transaction, one))
        comments = list(service.comments(transaction, one, after=after, limit=_COMMENTS + 1))
        pairs = _pairs(transaction, one, repository.suite_hash)
        shares = list(
            transaction.execute(
                select(Share, Round, Release.version)
                .join(Round, Round.id == Share.round_id)
                .outerjoin(Release, Release.round_id == Round.id)
                .where(Share.contribution_id == one.id)
                .order_by(Round.id)
            )
        )
        jobs = _jobs(transaction, one, repository.suite_hash)
    changes = _changes(checks)
    said = _fitting(comments[:_COMMENTS])
    mine = visitor.account == one.account_id and page.seen.role >= Role.CONTRIBUTE
    may = page.seen.role >= Role.MAINTAIN
    state = Offered(one.state)
    return page.show(
        "contribution",
        tab="contributions",
        one=one,
        checks=checks,
        comments=said,
        more=said[-1].id if len(said) < len(comments) else None,
        pairs=pairs,
        compared=draw_compared(pairs, "compared"),
        heat=draw_heat(changes, "heat"),
        shares=shares,
        jobs=jobs,
        can={
            "accept": may and (state == Offered.OPEN or (state == Offered.REFUSED and one.commit is not None)),
            "refuse": may and state in (Offered.RECEIVED, Offered.OPEN),
            "withdraw": (mine or may) and state in (Offered.RECEIVED, Offered.OPEN, Offered.REFUSED),
            "retry": (mine or may)
            and state in (Offered.RECEIVED, Offered.REFUSED)
            and not any(j.state in _GOING for j in jobs),
            "label": mine or may,
            "comment": visitor.account is not None,
        },
    )


@router.post("/{owner}/{name}/contributions/{number}/{act}")
def do(page: Reads, sent: Sent, number: Id, act: str) -> Response:
    """Do something with one; who may is for the service to say."""
    if act not in ACTS:
        raise Unknown("no such thing to do")
    done, run = ACTS[act]
    with page.hub.database.writing() as transaction:
        run(page.hub, transaction, page.now(transaction), number, sent)
    return page.go(page.at("contributions", number), done)


_GOING = (Done.WAITING, Done.RUNNING)


def _fitting(comments: Sequence[Comment]) -> Sequence[Comment]:
    """The first of them, as many as a page has room for; at least one."""
    room = _ROOM
    for i, one in enumerate(comments):
        room -= len(str(escape(one.body)).encode())
        if room < 0 and i:
            return comments[:i]
    return comments


def _labels(form: Form) -> list[str]:
    return [label for said in form.text("labels", 1000).split(",") if (label := said.strip())]


def _pairs(transaction: Transaction, one: Contribution, suite: str) -> list[Pair]:
    """Its scores on the suite beside its base's, task by task, the mean last."""
    if one.commit is None or not suite:
        return []
    query = select(Evaluation).where(
        Evaluation.commit.in_([one.commit, one.base]),
        Evaluation.repository_id == one.repository_id,
        Evaluation.suite == suite,
    )
    found: dict[tuple[str, str], dict[str, Evaluation]] = {}
    for row in transaction.scalars(query.order_by(Evaluation.task)):
        found.setdefault((row.protocol, row.task), {})[row.commit] = row
    protocols = {protocol for protocol, _ in found}
    pairs = []
    for (protocol, task), rows in sorted(found.items(), key=lambda item: (item[0][0], item[0][1] == "*", item[0][1])):
        tuned, base = rows.get(one.commit), rows.get(one.base)
        if tuned is not None:
            named = "mean" if task == "*" else task
            named = named if len(protocols) == 1 else f"{named}, {protocol}"
            pairs.append(Pair(named, None if base is None else _score(base), _score(tuned)))
    return pairs


def _score(row: Evaluation) -> Score:
    return Score(row.mean, row.low, row.high)


def _changes(checks: list[Check]) -> list[Change]:
    """How far each tensor moved, as the check of norms has measured it."""
    detail: Mapping[str, Any] = next((check.detail for check in checks if check.name == "norms"), {})
    return [
        Change(str(row["name"]), row.get("layer"), str(row.get("part", row["name"])), float(row["relative"]))
        for row in detail.get("tensors", ())
    ]


def _jobs(transaction: Transaction, one: Contribution, suite: str) -> list[Job]:
    """The work on it that is still to be done, or has failed."""
    keys = [
        *(f"{kind}:{one.id}" for kind in ("screen", "compare")),
        *(f"{kind}:{one.id}:{i}" for kind in ("screen", "compare") for i in range(1, 20)),
        f"evaluate:{one.repository_id}:{one.commit}:{suite}",
    ]
    query = select(Job).where(Job.key.in_(keys), Job.state != Done.DONE).order_by(Job.id)
    return list(transaction.scalars(query))
