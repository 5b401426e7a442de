"""Work: look at a contribution by itself; what passes becomes a commit in the repository's store."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.orm import Session as Transaction

from ...checkpoint import Checkpoint
from ...errors import CofuseError, CorruptError, StoreError
from ...store import Store
from ...store.commits import put_commit
from ...store.refs import PULLS
from ...store.trees import load_tree
from ...store.writing import writing
from .. import uploads
from ..checks import CHECKS, PLACES, Case, Found
from ..checks.case import is_theirs
from ..contributions.reviewing import tell
from ..database import Check, Contribution, Job, Upload
from ..hub import Hub
from ..quotas import charge
from ..states import Checked, Offered
from .comparing import ask_comparing, judge
from .evaluating import ask_scores
from .kind import Answer, Kind, Payload, Workplace

_KEPT = 7 * 86400.0  # seconds that what was refused can be looked at again


def run(place: Workplace, payload: Payload) -> Answer:
    """Make the checks, one after another, until one refuses; commit what passes."""
    repository, base = str(payload["repository"]), str(payload["base"])
    sent: Mapping[str, Any] = payload["sent"]
    needs = [base, *(sent[key] for key in ("commit", "fisher_commit") if sent.get(key))]
    if payload.get("fisher"):
        needs.append(payload["fisher"])
    store = place.store(repository, *needs)
    made: list[dict[str, Any]] = []
    try:
        case = Case(payload, place, store, store.checkpoint(base))
    except CorruptError:
        raise
    except StoreError as error:  # it holds no weights
        return {"checks": [{"name": "base", **asdict(Found(Checked.REFUSE, error.what))}], "commit": None}
    for name, look in CHECKS.items():
        place.progress.say(f"checking: {name}")
        try:
            found = look(case)
        except CofuseError as error:
            if not is_theirs(error):
                raise
            found = Found(Checked.REFUSE, case.plain(error.line))
        made.append({"name": name, **asdict(found)})
        if found.state is Checked.REFUSE:
            return {"checks": made, "commit": None}
    if case.body is None:
        raise TypeError("there is no body")
    commits = [_commit(store, case.body, _message(payload), payload, [base], {"contribution": record(case)})]
    if case.fisher is not None:
        said = f"the Fisher of contribution {payload['number']}"
        about = {"statistics": {"contribution": payload["number"], "content": case.content}}
        commits.append(_commit(store, case.fisher, said, payload, [], about))
    return {
        "checks": made,
        "commit": commits[0],
        "content": case.content,
        "statistics": commits[1] if len(commits) > 1 else None,
        "bytes": place.deliver(repository, commits, [base, *([sent["commit"]] if sent.get("commit") else [])]),
    }


def record(case: Case) -> dict[str, Any]:
    """What a contribution's commit says of itself; the same whoever looked at it, and when."""
    payload = case.payload
    said = ("repository", "number", "account", "branch", "source", "title", "data", "licence", "examples", "metrics")
    sent = {
        part: {name: one["sha256"] for name, one in payload["sent"].get(part, {}).items()}
        for part in ("files", "fisher")
    }
    of = payload["sent"].get("commit")
    return {key: payload[key] for key in said} | {
        "sent": sent | ({"commit": of} if of else {}),
        "content": case.content,
    }


def _message(payload: Payload) -> str:
    return f"{payload['title']} (#{payload['number']})"


def _commit(
    store: Store, what: Checkpoint, message: str, payload: Payload, parents: list[str], said: dict[str, Any]
) -> str:
    tree = store.add(what, like=payload["base"])
    with writing(store.objects) as pen:
        pen.rely_on(tree)
        made = put_commit(
            pen,
            store.objects,
            tree=tree,
            content=load_tree(store.objects, tree).content,
            parents=parents,
            message=message,
            author=str(payload["account"]),
            record=said,
        )
        pen.sync()
    return made.id


def settle(hub: Hub, transaction: Transaction, job: Job, answer: Answer) -> None:
    """Write down what was found; a contribution that passed waits to be compared with the others."""
    contribution = transaction.get_one(Contribution, job.payload["contribution"], with_for_update={"of": Contribution})
    write_checks(transaction, contribution, {one["name"]: _found(one) for one in answer["checks"]}, anew=True)
    if contribution.state != Offered.RECEIVED:
        _let_go(hub, transaction, contribution)  # withdrawn, or refused by a maintainer, meanwhile
        return
    beside = {} if answer["commit"] is None else {"duplicate": _duplicate(transaction, contribution, answer["content"])}
    refused = next((one for one in answer["checks"] if one["state"] == Checked.REFUSE), None)
    if refused is None and beside["duplicate"].state is Checked.REFUSE:
        refused = {"name": "duplicate", "figure": beside["duplicate"].figure}
    signed = _known_key(transaction, contribution, answer["checks"])
    write_checks(transaction, contribution, beside | ({} if signed is None else {"signature": signed}))
    if refused is not None:
        refuse(transaction, contribution, refused["name"], refused["figure"])
        _let_go(hub, transaction, contribution, later=True)
        return
    _let_go(hub, transaction, contribution)
    charge(transaction, hub.settings.limits, contribution.repository, int(answer["bytes"]))
    contribution.commit, contribution.content = answer["commit"], answer["content"]
    contribution.statistics, contribution.updated = answer["statistics"], time.time()
    refs = hub.store(contribution.repository).refs
    refs.update(f"{PULLS}{contribution.number}", contribution.commit)
    if contribution.statistics is not None:
        refs.update(f"{PULLS}{contribution.number}-fisher", contribution.statistics)
    transaction.flush()
    ask_comparing(transaction, contribution, job.key.removeprefix("screen:"))
    for version in (contribution.base, contribution.commit):
        ask_scores(transaction, contribution.repository, version)
    judge(transaction, contribution.repository_id, contribution.commit)  # the same weights may have been scored before


def fail(hub: Hub, transaction: Transaction, job: Job) -> None:
    """Say of a contribution that it could not be looked at; it can be tried again."""
    contribution = transaction.get_one(Contribution, job.payload["contribution"], with_for_update={"of": Contribution})
    if contribution.state == Offered.RECEIVED:
        contribution.state = Offered.REFUSED
        contribution.reason = f"the hub could not look at it: job {job.id} says why; it can be tried again"
        tell(transaction, contribution, "failed", contribution.reason)


def refuse(transaction: Transaction, contribution: Contribution, check: str, figure: str) -> None:
    """Refuse a contribution by a check."""
    contribution.state, contribution.reason = Offered.REFUSED, f"{check}: {figure}"
    tell(transaction, contribution, "refused", contribution.reason)


def write_checks(
    transaction: Transaction, contribution: Contribution, found: Mapping[str, Found], *, anew: bool = False
) -> None:
    """Keep what checks have found, in place of what they had found before."""
    if anew:
        transaction.execute(delete(Check).where(Check.contribution_id == contribution.id))
    for name, one in found.items():
        transaction.merge(
            Check(
                contribution_id=contribution.id,
                name=name,
                place=PLACES.get(name, len(PLACES)),
                state=one.state,
                figure=one.figure[:2000],
                detail=one.detail,
            )
        )
    transaction.flush()


def _found(one: Mapping[str, Any]) -> Found:
    return Found(Checked(one["state"]), str(one["figure"]), dict(one["detail"]))


def _duplicate(transaction: Transaction, contribution: Contribution, content: str) -> Found:
    """Whether somebody has offered these weights before; what its author has withdrawn may be offered again."""
    query = select(Contribution).where(
        Contribution.repository_id == contribution.repository_id,
        Contribution.content == content,
        Contribution.id != contribution.id,
    )
    for one in transaction.scalars(query.order_by(Contribution.number)):
        if one.state == Offered.WITHDRAWN and one.account_id == contribution.account_id:
            continue
        return Found(Checked.REFUSE, f"the same weights were offered before: #{one.number}", {"number": one.number})
    return Found(Checked.PASS, "nobody has offered these weights before")


def _known_key(
    transaction: Transaction, contribution: Contribution, checks: Iterable[Mapping[str, Any]]
) -> Found | None:
    """A good signature beside those of the account's other contributions: another key is worth a look."""
    mine = next((one for one in checks if one["name"] == "signature" and one["detail"].get("key")), None)
    if mine is None:
        return None
    query = (
        select(Check)
        .join(Contribution, Contribution.id == Check.contribution_id)
        .where(Contribution.account_id == contribution.account_id, Contribution.id != contribution.id)
        .where(Check.name == "signature", Check.state.in_([Checked.PASS, Checked.WARN]))
        .order_by(Contribution.id.desc())
    )
    before = [one.detail["key"] for one in transaction.scalars(query.limit(20)) if one.detail.get("key")]
    key = mine["detail"]["key"]
    if not before:
        return Found(Checked.PASS, f"{mine['figure']}, seen for the first time", mine["detail"])
    if key in before:
        return Found(Checked.PASS, f"{mine['figure']}, which signed others of this account", mine["detail"])
    return Found(Checked.WARN, f"{mine['figure']}, not the key of this account's others", mine["detail"])


def _let_go(hub: Hub, transaction: Transaction, contribution: Contribution, *, later: bool = False) -> None:
    """Uploads are not needed any more; of what was refused, for a while, so that it can be looked at again."""
    for part in ("files", "fisher"):
        for one in contribution.sent.get(part, {}).values():
            row = transaction.get(Upload, one["key"])
            if row is not None and later:
                row.expires = time.time() + _KEPT
            elif row is not None:
                uploads.discard(hub, transaction, one["key"])
    transaction.flush()


KIND = Kind(run, settle, fail)
