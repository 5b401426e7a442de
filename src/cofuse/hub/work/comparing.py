"""Work: compare a contribution with all that wait for the same round. Done again whenever one joins them.

It is open from then on, so no round takes what has not been compared; and who came first, when there was nobody to compare
with, is compared as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from sqlalchemy import and_, or_, select
from sqlalchemy.orm import Session as Transaction

from ..checks.beside import Beside, One
from ..checks.case import Found
from ..checks.geometry import measure
from ..contributions import ACCEPTED, tell
from ..database import Branch, Check, Contribution, Job, Release
from ..hub import Hub
from ..policy import BranchPolicy, Screen, read_policy
from ..states import Checked, Offered
from . import queue
from .kind import Answer, Kind, Payload, Workplace

MOST = 32  # that are compared at once: the newest


def ask_comparing(transaction: Transaction, contribution: Contribution, attempt: str) -> None:
    """Ask for a contribution to be compared with those that wait."""
    query = (
        select(Contribution)
        .where(
            Contribution.repository_id == contribution.repository_id,
            Contribution.branch == contribution.branch,
            or_(
                Contribution.state.in_([Offered.OPEN, Offered.FUSING]),
                and_(Contribution.state == Offered.RECEIVED, Contribution.commit.is_not(None)),
            ),
        )
        .order_by(Contribution.number.desc())
        .limit(MOST)
    )
    among = sorted({contribution, *transaction.scalars(query)}, key=lambda one: one.number)
    told = transaction.scalars(
        select(Check).where(Check.name == "predicted", Check.contribution_id.in_([one.id for one in among]))
    )
    predicted = {one.contribution_id: one.detail["nats"] for one in told if one.detail.get("shared")}
    release = transaction.scalar(
        select(Release)
        .where(Release.repository_id == contribution.repository_id, Release.branch == contribution.branch)
        .order_by(Release.id.desc())
        .limit(1)
    )
    payload = {
        "contribution": contribution.id,
        "repository": contribution.repository.full_name,
        "among": [
            {
                "number": one.number,
                "account": one.account.name,
                "commit": one.commit,
                "base": one.base,
                "predicted": predicted.get(one.id),
            }
            for one in among
        ],
        "release": None if release is None else release.commit,
        "screen": policy_of(transaction, contribution).screen.model_dump(mode="json"),
    }
    queue.ask(transaction, "compare", f"compare:{attempt}", contribution.repository_id, payload)


def run(place: Workplace, payload: Payload) -> Answer:
    """Measure all changes in one pass."""
    from ..checks import BESIDE

    among: list[Mapping[str, Any]] = payload["among"]
    release = payload["release"]
    needs = dict.fromkeys(key for one in among for key in (one["commit"], one["base"]))
    store = place.store(payload["repository"], *needs, *([release] if release else []))
    versions = {commit: store.checkpoint(commit) for commit in needs}
    changes = [(versions[one["commit"]], versions[one["base"]]) for one in among]
    before = store.load_commit(release).parents[:1] if release else ()
    if before:
        changes.append((store.checkpoint(release), store.checkpoint(before[0])))
    them = Beside(
        [One(one["number"], one["account"], one["predicted"]) for one in among],
        measure(changes, place.progress),
        bool(before),
        Screen.model_validate(payload["screen"]),
    )
    found: dict[str, dict[str, Any]] = {str(one["number"]): {} for one in among}
    for name, look in BESIDE.items():
        for number, one in look(them).items():
            found[str(number)][name] = asdict(one)
    return {"found": found}


def settle(hub: Hub, transaction: Transaction, job: Job, answer: Answer) -> None:
    """Write down what was found of each that still waits; the one that joined is open from now on.

    Where the one that joined is refused or taken back, nothing is said of the others: they were compared with it, and who
    sends somebody's change turned round must not be able to have them refused.
    """
    from .screening import refuse, write_checks

    joined = job.payload["contribution"]
    query = select(Contribution).where(
        Contribution.repository_id == job.repository_id,
        Contribution.number.in_([int(number) for number in answer["found"]]),
        Contribution.state.in_([Offered.RECEIVED, Offered.OPEN]),
    )
    # In one order, so that two who settle at once do not wait for each other for ever.
    waiting = list(transaction.scalars(query.order_by(Contribution.number).with_for_update(of=Contribution)))
    if all(one.id != joined for one in waiting):
        return  # refused, or taken back, meanwhile
    for one in sorted(waiting, key=lambda one: one.id != joined):  # the one that joined first
        if not _later(transaction, one, job):  # else it has been compared with more of them already
            said = {name: _found(each, job) for name, each in answer["found"][str(one.number)].items()}
            write_checks(transaction, one, said)
            strange = next(((name, each) for name, each in said.items() if each.state is Checked.REFUSE), None)
            if strange is not None and ACCEPTED not in one.labels:
                refuse(transaction, one, strange[0], strange[1].figure)
        if one.id == joined:
            open_if_done(transaction, one)
            if one.state == Offered.REFUSED:
                return


def judge(transaction: Transaction, repository: int, commit: str) -> None:
    """Write down what the scores of a version say of the contributions that it is, or that come from it."""
    from ..checks import evaluation
    from .screening import refuse, write_checks

    query = select(Contribution).where(
        Contribution.repository_id == repository,
        Contribution.state.in_([Offered.RECEIVED, Offered.OPEN]),
        Contribution.commit.is_not(None),
        or_(Contribution.commit == commit, Contribution.base == commit),
    )
    for one in transaction.scalars(query.order_by(Contribution.number).with_for_update(of=Contribution)).all():
        found = evaluation.compare(transaction, one, policy_of(transaction, one).screen)
        if found is None:
            continue
        write_checks(transaction, one, {"evaluation": found})
        if found.state is Checked.REFUSE and ACCEPTED not in one.labels:
            refuse(transaction, one, "evaluation", found.figure)
        open_if_done(transaction, one)


def open_if_done(transaction: Transaction, one: Contribution) -> None:
    """A contribution is open from when it has been compared; where scores may refuse it, from when it has been scored."""
    made = set(transaction.scalars(select(Check.name).where(Check.contribution_id == one.id)))
    waits = policy_of(transaction, one).screen.evaluation == "refuse" and bool(one.repository.suite_hash)
    if one.state == Offered.RECEIVED and "direction" in made and ("evaluation" in made or not waits):
        one.state = Offered.OPEN
        tell(transaction, one, "screened")


def policy_of(transaction: Transaction, one: Contribution) -> BranchPolicy:
    """The policy of a contribution's branch; the default one where it has none."""
    row = transaction.get(Branch, (one.repository_id, one.branch))
    return read_policy("" if row is None else row.policy)


def fail(hub: Hub, transaction: Transaction, job: Job) -> None:
    """Say that it could not be compared; a maintainer may accept it all the same, or have it tried again."""
    from .screening import fail as failed

    failed(hub, transaction, job)


def _found(one: Mapping[str, Any], job: Job) -> Found:
    return Found(Checked(one["state"]), str(one["figure"]), {**one["detail"], "job": job.id})


def _later(transaction: Transaction, contribution: Contribution, job: Job) -> bool:
    """Whether a comparison that was asked for after this one has been written down."""
    query = select(Check).where(Check.contribution_id == contribution.id, Check.name == "direction")
    found = transaction.scalar(query)
    return found is not None and found.detail.get("job", 0) > job.id


KIND = Kind(run, settle, fail)
