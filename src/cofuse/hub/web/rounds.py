"""Rounds: the list, and the page of one, where a held one is decided."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast, get_args

from fastapi import APIRouter
from markupsafe import Markup
from sqlalchemy import case, func, select
from sqlalchemy.orm import Session as Transaction
from starlette.responses import Response

from ...report.gate_charts import charts
from ..access.roles import Role
from ..api.values import Before, Id
from ..database import Branch, Job, Release, Round, Share
from ..faults import Invalid, Unknown
from ..rounds.deciding import Decision, decide
from ..rounds.opening import start
from ..states import Done, Stage
from .depends import Maintains, Reads, Sent
from .history import round_path
from .page import Within

router = APIRouter(include_in_schema=False)
ROWS = 30  # of a page
_UNDER_WAY = (Stage.FUSING, Stage.JUDGING, Stage.PUBLISHING)


@router.get("/{owner}/{name}/rounds")
def index(page: Reads, before: Before = None) -> Response:
    """The list, the newest first; for maintainers, a round can be begun."""
    own = Round.repository_id == page.seen.repository.id
    query = select(Round, Release.version).outerjoin(Release, Release.round_id == Round.id).where(own)
    if before is not None:
        query = query.where(Round.id < before)
    with page.hub.database.reading() as transaction:
        found = list(transaction.execute(query.order_by(Round.id.desc()).limit(ROWS + 1)))
        counts = _counts(transaction, [one.id for one, _ in found])
        branches = list(
            transaction.scalars(
                select(Branch).where(Branch.repository_id == page.seen.repository.id).order_by(Branch.name).limit(50)
            )
        )
    return page.show(
        "rounds",
        tab="rounds",
        rows=[(one, version, counts.get(one.id, (0, 0)), round_path(one, page.at)) for one, version in found[:ROWS]],
        branches=branches,
        before=before,
        older=page.at("rounds", before=found[ROWS - 1][0].id) if len(found) > ROWS else None,
    )


@router.get("/{owner}/{name}/rounds/{branch:path}/{number}")
def one(page: Reads, branch: str, number: Id) -> Response:
    """A round: what went in and what it weighs, what the gate said, what came of it."""
    with page.hub.database.reading() as transaction:
        found = find(transaction, page, branch, number)
        shares = list(
            transaction.scalars(select(Share).where(Share.round_id == found.id).order_by(Share.contribution_id))
        )
        release = transaction.scalar(select(Release).where(Release.round_id == found.id))
        base = transaction.scalar(
            select(Release)
            .where(Release.repository_id == found.repository_id, Release.commit == found.base)
            .order_by(Release.id.desc())
            .limit(1)
        )
        jobs = list(
            transaction.scalars(
                select(Job)
                .where(
                    Job.key.in_([f"{kind}:{found.id}:{k}" for kind in _KINDS for k in range(1, _attempts(found) + 1)])
                )
                .where(Job.state != Done.DONE)
                .order_by(Job.id)
            )
        )
    whole = sum(share.weight for share in shares if not share.dropped) or 1.0
    shares.sort(key=lambda share: share.contribution.number)
    return page.show(
        "round",
        tab="rounds",
        one=found,
        here_path=round_path(found, page.at),
        shares=[(share, None if share.dropped else share.weight / whole) for share in shares],
        release=release,
        base=base,
        jobs=jobs,
        verdict=found.verdict or None,
        chart=_differences(found.verdict),
        plan=_plain(found.plan),
        figures=_plain(found.figures),
        held=found.state == Stage.HELD and page.seen.role >= Role.MAINTAIN,
        failed=found.state == Stage.FAILED and page.seen.role >= Role.MAINTAIN,
        busy=found.state in _UNDER_WAY,
    )


@router.post("/{owner}/{name}/rounds")
def begin(page: Maintains, sent: Sent) -> Response:
    """Begin a round with what is open."""
    with page.hub.database.writing() as transaction:
        made = start(page.hub, transaction, page.now(transaction), sent.text("branch", 200, needed=True))
        path = round_path(made, page.at)
    return page.go(path, "opened")


@router.post("/{owner}/{name}/rounds/{branch:path}/{number}")
def decision(page: Maintains, sent: Sent, branch: str, number: Id) -> Response:
    """Publish what is held, give a round up, or try again what has failed."""
    said = sent.text("decision", 16)
    if said not in get_args(Decision):
        raise Invalid("no such decision", got=ascii(said), expected=", ".join(get_args(Decision)))
    with page.hub.database.writing() as transaction:
        found = find(transaction, page, branch, number)
        decide(page.hub, transaction, page.now(transaction), found.id, cast("Decision", said))
    return page.go(page.at("rounds", branch, number), "decided")


def find(transaction: Transaction, page: Within, branch: str, number: int) -> Round:
    """A round by its branch and number.

    Raises:
        Unknown: there is none.
    """
    found = transaction.scalar(
        select(Round).where(
            Round.repository_id == page.seen.repository.id, Round.branch == branch, Round.number == number
        )
    )
    if found is None:
        raise Unknown("no such round", got=ascii(f"{branch}/{number}"[:200]))
    return found


_KINDS = ("fuse", "judge", "publish")


def _attempts(one: Round) -> int:
    said = one.plan.get("attempt", 1)
    return min(said, 40) if isinstance(said, int) else 1


def _counts(transaction: Transaction, rounds: Sequence[int]) -> Mapping[int, tuple[int, int]]:
    """How many contributions went in, and how many of them were left out after all."""
    out = func.sum(case((Share.dropped != "", 1), else_=0))
    query = select(Share.round_id, func.count(), out).where(Share.round_id.in_(rounds)).group_by(Share.round_id)
    return {round_id: (count, int(left or 0)) for round_id, count, left in transaction.execute(query)}


def _differences(verdict: Mapping[str, Any]) -> Markup:
    """The gate's picture: new minus old, task by task."""
    tasks = [
        {
            "task": str(row["task"]),
            "protocol": str(row.get("protocol", "oldhead")),
            "difference": {key: row[key] for key in ("mean", "low", "high")},
            "margin": row.get("margin"),
            "negative": None,
        }
        for row in verdict.get("tasks") or ()
        if all(isinstance(row.get(key), int | float) for key in ("mean", "low", "high"))
    ]
    states = {
        (str(row.get("protocol", "oldhead")), str(row["task"])): str(row.get("state", "level"))
        for row in verdict.get("tasks") or ()
    }
    drawn = charts(tasks, {"mean": None, "low": None, "high": None}, states) if tasks else []
    return Markup(drawn[0].drawing) if drawn else Markup("")  # noqa: S704 - escaped where it is made


def _plain(said: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What is known beside, as far as it is a word or a number."""
    return [
        (key.replace("_", " "), f"{value:.6g}" if isinstance(value, float) else str(value))
        for key, value in said.items()
        if isinstance(value, str | int | float) and not isinstance(value, bool) and key not in ("attempt", "tries")
    ]
