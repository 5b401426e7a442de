"""The course of a round: what comes after what. Each step is settled in the transaction that marks its job done.

    begin ──> fuse ──> judge ──> publish ──> published
                 ^        │ drop_worst
                 └────────┘ hold: abandoned, the branch waits; ask: held, a maintainer decides

A round's attempt grows with each fuse or decision; what a job of an earlier attempt gives is passed over.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session as Transaction

from ...store.ancestry import is_ancestor
from ...store.refs import HEADS, ROUNDS
from ..access.audit import note
from ..access.visitor import Visitor
from ..contributions import tell
from ..database import Branch, Contribution, Job, Release, Repository, Round, Share
from ..faults import Conflict
from ..hub import Hub
from ..policy import BranchPolicy, read_policy
from ..states import Offered, Stage
from ..work import queue
from .inputs import Input, recipe_of, step, weigh
from .publishing import publish
from .stages import FORMAT, JOBS, ask, at, left_out, new_round, shares
from .versions import next_version


def begin(
    hub: Hub,
    transaction: Transaction,
    repository: Repository,
    branch: str,
    policy: str,
    chosen: Sequence[Contribution],
    visitor: Visitor | None = None,
) -> Round:
    """Begin a round of contributions.

    Raises:
        Conflict: one is under way.
    """
    read = read_policy(policy)
    tip = hub.store(repository).refs.get(HEADS + branch)
    if tip is None:
        raise Conflict("the branch has no version yet", got=branch, hint="push one: contributions need a base")
    made = new_round(transaction, repository, branch, kind="round", base=tip, policy=policy, plan={"tries": 0})
    weights = weigh(read.weights, [(one.account.name, one.examples) for one in chosen])
    for one, weight in zip(chosen, weights, strict=True):
        transaction.add(Share(round_id=made.id, contribution_id=one.id, weight=weight))
        _move(one, Offered.FUSING)
        tell(transaction, one, "fusing", f"in round {made.number} of {branch}")
    transaction.flush()
    note(transaction, visitor, "round.begin", branch, repository=repository.id, round=made.number, of=len(chosen))
    fuse(transaction, made)
    return made


def fuse(transaction: Transaction, round_: Round) -> None:
    """Ask for the fuse of what has not been dropped."""
    policy = read_policy(round_.policy)
    kept = [share for share in shares(transaction, round_) if not share.dropped]
    inputs = [Input.of(share.contribution, share.weight) for share in kept]
    recipe = recipe_of(policy.fuse, inputs, round_.base)
    record = {
        **_who(round_),
        "method": recipe.merge_method,
        "inputs": [one.said() for one in inputs],
        "left_out": left_out(transaction, round_),
        "steps": [step(recipe, round_.base)],
        "result": "step 1",
        "approximate": any(one.base != round_.base for one in inputs),
    }
    count = f"{len(inputs)} contribution{'s' * (len(inputs) != 1)}"
    message = f"round {round_.number} of {round_.branch}: {recipe.merge_method} of {count}"
    ask(transaction, round_, Stage.FUSING, {"base": round_.base, "message": message, "record": record})


def _who(round_: Round) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "kind": round_.kind,
        "model": round_.repository.full_name,
        "branch": round_.branch,
        "number": round_.number,
    }


# What comes after each stage


def after_fuse(
    hub: Hub, transaction: Transaction, round_: Round, payload: Mapping[str, Any], answer: Mapping[str, Any]
) -> None:
    """The commit is made: have it judged."""
    round_.commit, round_.figures = answer["commit"], answer["figures"]
    if round_.kind == "revocation" and answer["content"] == answer["before"]:
        abandon(hub, transaction, round_, "nothing of them is left in the branch's version", pause=False)
        return
    repository, policy = round_.repository, read_policy(round_.policy)
    _hold(hub, round_, round_.commit)
    judged = {
        "suite": repository.suite,
        "suite_hash": repository.suite_hash,
        "gate": policy.gate.model_dump(mode="json"),
        "old": round_.base,
        "new": round_.commit,
        "recorded": {key: payload[key] for key in ("base", "message", "record")},
        "how": policy.fuse.model_dump(mode="json"),
        "worst": _wanted(round_, policy),
    }
    ask(transaction, round_, Stage.JUDGING, judged)


def _hold(hub: Hub, round_: Round, commit: str | None) -> None:
    """See to it that what a round has made is not collected, however long it waits for a maintainer; or let go of it."""
    hub.store(round_.repository).refs.update(f"{ROUNDS}{round_.id}", commit)


def _wanted(round_: Round, policy: BranchPolicy) -> list[str]:
    """Verdicts at which the judge also finds the contribution without which the fuse is best."""
    if round_.kind != "round" or round_.plan["tries"] >= policy.gate.tries:
        return []
    how = {"block": policy.gate.on_block, "undecided": policy.gate.on_undecided}
    return [state for state, what in how.items() if what == "drop_worst"]


def after_judge(hub: Hub, transaction: Transaction, round_: Round, answer: Mapping[str, Any]) -> None:
    """The gate has said something: release, drop, hold, or ask."""
    round_.verdict = dict(answer["verdict"])
    gate, state = read_policy(round_.policy).gate, round_.verdict["state"]
    how = {"block": gate.on_block, "undecided": gate.on_undecided, "unable": "ask"}.get(state, "publish")
    if how == "hold" and round_.kind == "revocation":  # which is owed, so it cannot come to nothing by itself
        how = "ask"
    if how == "drop_worst":
        if answer.get("worst") is not None and _drop(transaction, round_, answer["worst"]):
            return
        how = "ask"
    said = f"the gate said {state}: {'; '.join(round_.verdict.get('reasons', ()))[:1000]}"
    if how == "publish":
        release(hub, transaction, round_)
    elif how == "hold":
        abandon(hub, transaction, round_, said)
    else:
        round_.state, round_.reason, round_.updated = Stage.HELD, said, time.time()
        note(transaction, None, "round.hold", round_.branch, repository=round_.repository_id, round=round_.number)


def _drop(transaction: Transaction, round_: Round, worst: Mapping[str, Any]) -> bool:
    """Leave the worst contribution out and fuse the others again; False where too few are left."""
    kept = [share for share in shares(transaction, round_) if not share.dropped]
    out = next((share for share in kept if share.contribution.number == worst["contribution"]), None)
    if out is None or len(kept) - 1 < read_policy(round_.policy).least:
        return False
    out.dropped = str(worst["why"])[:1000]
    _move(out.contribution, Offered.REFUSED, f"left out of round {round_.number}: {out.dropped}")
    tell(transaction, out.contribution, "dropped", out.contribution.reason)
    round_.plan = {**round_.plan, "attempt": round_.plan["attempt"] + 1, "tries": round_.plan["tries"] + 1}
    note(
        transaction,
        None,
        "round.drop",
        f"#{out.contribution.number}",
        repository=round_.repository_id,
        round=round_.number,
    )
    fuse(transaction, round_)
    return True


def release(hub: Hub, transaction: Transaction, round_: Round, forced_by: str = "") -> None:
    """Choose the version, and ask for the release."""
    tags = hub.store(round_.repository).tags()
    transaction.execute(select(Repository.id).where(Repository.id == round_.repository_id).with_for_update())
    round_.version = None
    transaction.flush()
    round_.version = next_version(transaction, round_.repository_id, round_.verdict.get("step"), tags)
    previous = transaction.scalar(
        select(Release).where(Release.repository_id == round_.repository_id, Release.commit == round_.base).limit(1)
    )
    said: dict[str, Any] = {
        "version": round_.version,
        "previous": {"version": "" if previous is None else previous.version, "commit": round_.base},
        "verdict": round_.verdict,
    }
    if forced_by:
        said["forced_by"] = forced_by
    ask(
        transaction, round_, Stage.PUBLISHING, {"commit": round_.commit, "release": said, **round_.plan.get("make", {})}
    )


def after_publish(hub: Hub, transaction: Transaction, round_: Round, answer: Mapping[str, Any]) -> None:
    """The release's commit is made: it becomes the branch's tip, with its tag."""
    from ..work.evaluating import ask_scores

    store = hub.store(round_.repository)
    tip = store.refs.get(HEADS + round_.branch)
    if tip != round_.base and (tip is None or not is_ancestor(store.objects, answer["commit"], tip)):
        round_.plan = {**round_.plan, "superseded": True}
        abandon(hub, transaction, round_, "somebody has pushed to the branch meanwhile", pause=False)
        return
    publish(hub, transaction, round_, answer["commit"])
    _hold(hub, round_, None)
    round_.commit, round_.state, round_.reason, round_.updated = answer["commit"], Stage.PUBLISHED, "", time.time()
    for share in shares(transaction, round_):
        if not share.dropped and share.contribution.state == Offered.FUSING:
            _move(share.contribution, Offered.FUSED)
            tell(transaction, share.contribution, "fused", f"in {round_.version}")
    note(
        transaction,
        None,
        "release.publish",
        round_.version or "",
        repository=round_.repository_id,
        commit=round_.commit,
        branch=round_.branch,
    )
    ask_scores(transaction, round_.repository, answer["commit"])


def fail(transaction: Transaction, job: Job, state: Stage) -> None:
    """A stage cannot be done: the round waits until somebody tries again, or gives it up."""
    round_ = at(transaction, job, state)
    if round_ is not None:
        round_.state, round_.reason, round_.updated = Stage.FAILED, job.error, time.time()


def abandon(hub: Hub, transaction: Transaction, round_: Round, reason: str, *, pause: bool = True) -> None:
    """Give a round up: nothing was published, its contributions are free again."""
    _hold(hub, round_, None)
    round_.state, round_.reason, round_.updated = Stage.ABANDONED, reason, time.time()
    round_.version = None
    keys = [f"{kind}:{round_.id}:{round_.plan['attempt']}" for kind in JOBS.values()]
    queue.forget(transaction, keys)
    round_.plan = {**round_.plan, "attempt": round_.plan["attempt"] + 1}
    for share in shares(transaction, round_):
        if share.contribution.state == Offered.FUSING:
            _move(share.contribution, Offered.OPEN)
            tell(transaction, share.contribution, "open", f"round {round_.number} came to nothing")
    row = transaction.get(Branch, (round_.repository_id, round_.branch))
    if pause and row is not None:  # or the same round would begin at once
        row.paused = f"round {round_.number}: {reason}"[:1000]
    note(
        transaction,
        None,
        "round.abandon",
        round_.branch,
        repository=round_.repository_id,
        round=round_.number,
        reason=reason[:300],
    )


def _move(contribution: Contribution, state: Offered, reason: str = "") -> None:
    contribution.state, contribution.reason = state, reason
