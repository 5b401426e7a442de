"""Taking contributions out of what they were fused into: the rounds since are fused anew without them.

The first round that had one of them is fused again from the same base. Rounds after it are put on what that gives: their
contributions keep their task vectors, which is approximate, because their training started from another base. The result
is gated against the branch's tip and released on top of it; the history stays as it is.

    R1 ── R2 ── R3 ── R4        R2 had a contribution that is revoked
     ╲                 ╲
      R2' ── R3'        R5      R5 has the weights of R3', and R4's changes on top of them
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session as Transaction

from ...store.refs import HEADS
from ..access.audit import note
from ..access.roles import Role
from ..access.tokens import find_account
from ..contributions import tell
from ..database import Branch, Contribution, Release, Repository, Round, Share
from ..faults import Conflict, Invalid, Unknown
from ..hub import Hub
from ..policy import read_policy
from ..repositories import Seen
from ..states import Offered, Stage
from .course import abandon
from .inputs import Input, moved, recipe_of, step
from .stages import FORMAT, UNDER_WAY, ask, new_round, shares

_GONE = (Offered.REVOKED, Offered.WITHDRAWN)


def revoke(
    hub: Hub,
    transaction: Transaction,
    seen: Seen,
    *,
    account: str | None = None,
    number: int | None = None,
    reason: str = "",
) -> list[Contribution]:
    """Revoke an account's contributions to a repository, or one; what they were fused into is fused anew (`due`).

    A round under way that has one of them is given up, unless it is being published: then it is undone like the others.

    Args:
        hub: whose.
        transaction: where.
        seen: the repository, for a maintainer.
        account: whose contributions.
        number: of the contribution.
        reason: what the contributions show.

    Raises:
        Unknown: no such account or contribution.
        Invalid: both are given, or none.
    """
    seen.must(Role.MAINTAIN)
    if (account is None) == (number is None):
        raise Invalid("say what is revoked", expected="an account, or the number of a contribution")
    query = select(Contribution).where(Contribution.repository_id == seen.repository.id)
    if account is not None:
        found = find_account(transaction, account)
        if found is None:
            raise Unknown("no such account", got=account)
        query = query.where(Contribution.account_id == found.id)
    else:
        query = query.where(Contribution.number == number)
    rows = list(transaction.scalars(query.order_by(Contribution.number).with_for_update(of=Contribution)))
    if number is not None and not rows:
        raise Unknown("no such contribution", got=f"#{number}")
    revoked = [row for row in rows if row.state not in (*_GONE, Offered.REFUSED)]
    for row in revoked:
        row.state, row.reason = Offered.REVOKED, reason[:1000]
        tell(transaction, row, "revoked", reason, seen.visitor)
    transaction.flush()
    for round_ in _touched(transaction, [row.id for row in revoked]):
        if round_.state in (Stage.FUSING, Stage.JUDGING, Stage.HELD, Stage.FAILED):
            abandon(hub, transaction, round_, "a contribution was revoked", pause=False)
    target = account if account is not None else f"#{number}"
    note(
        transaction,
        seen.visitor,
        "contribution.revoke",
        target,
        repository=seen.repository.id,
        numbers=[row.number for row in revoked],
        reason=reason[:300],
    )
    for branch in sorted({row.branch for row in revoked}):
        if transaction.get(Branch, (seen.repository.id, branch)) is None and _fused(
            transaction, seen.repository.id, branch
        ):
            # A branch whose policy was removed since still owes the release without them.
            _begin(hub, transaction, seen.repository, branch, "")
    return revoked


def in_releases(transaction: Transaction, contributions: Iterable[int]) -> list[int]:
    """The numbers of the contributions, of these ids, that a release was made with."""
    query = (
        select(Contribution.number)
        .join(Share, Share.contribution_id == Contribution.id)
        .join(Round, Round.id == Share.round_id)
        .where(Contribution.id.in_(list(contributions)), Share.dropped == "", Round.state == Stage.PUBLISHED)
    )
    return sorted(set(transaction.scalars(query)))


def _touched(transaction: Transaction, contributions: Iterable[int]) -> list[Round]:
    """Rounds under way that have one of them."""
    theirs = select(Share.round_id).where(Share.contribution_id.in_(list(contributions)), Share.dropped == "")
    query = select(Round).where(Round.id.in_(theirs), Round.state.in_(UNDER_WAY)).with_for_update(of=Round)
    return list(transaction.scalars(query))


def _fused(
    transaction: Transaction, repository: int, branch: str, upto: int | None = None
) -> list[tuple[Round, Contribution]]:
    """Published rounds of a branch and the revoked contributions that are still in what they led to.

    Args:
        transaction: where.
        repository: its id.
        branch: of it.
        upto: only what led to the release of the round of this number; the branch's tip when None.
    """
    query = (
        select(Round, Contribution)
        .join(Share, Share.round_id == Round.id)
        .join(Contribution, Contribution.id == Share.contribution_id)
        .where(
            Round.repository_id == repository,
            Round.branch == branch,
            Round.state == Stage.PUBLISHED,
            Share.dropped == "",
            Contribution.state == Offered.REVOKED,
        )
        .order_by(Round.number)
    )
    undone = select(Round).where(Round.repository_id == repository, Round.branch == branch, Round.kind == "revocation")
    if upto is not None:
        query = query.where(Round.number <= upto)
        undone = undone.where(Round.number <= upto, Round.state == Stage.PUBLISHED)
    found = transaction.execute(query).all()
    if not found:
        return []
    done = {
        number
        for one in transaction.scalars(undone)
        if not one.plan.get("superseded")
        for number in one.plan["without"]
    }
    return [(round_, one) for round_, one in found if one.number not in done]


def still_in(transaction: Transaction, release: Release) -> list[int]:
    """The numbers of the revoked contributions that a release holds."""
    round_ = None if release.round_id is None else transaction.get(Round, release.round_id)
    if round_ is None:
        return []
    upto = round_.plan["round"] if round_.kind == "rollback" else round_.number
    return sorted({one.number for _, one in _fused(transaction, release.repository_id, release.branch, upto)})


def has_due_revocation(transaction: Transaction, repository: int, branch: str) -> bool:
    """Whether a branch holds what was revoked."""
    return bool(_fused(transaction, repository, branch))


def begin_due_revocation(hub: Hub, transaction: Transaction, repository: Repository, row: Branch) -> Round | None:
    """Begin the revocation that a branch owes; None where it owes none.

    Raises:
        Conflict: a round is under way.
    """
    if not _fused(transaction, repository.id, row.name):
        return None
    return _begin(hub, transaction, repository, row.name, row.policy)


def _begin(hub: Hub, transaction: Transaction, repository: Repository, branch: str, policy: str) -> Round:
    owed = _fused(transaction, repository.id, branch)
    tip = hub.store(repository).refs.get(HEADS + branch)
    if tip is None:
        raise Conflict("the branch is gone", got=branch)
    without = sorted({one.number for _, one in owed})
    first = owed[0][0].number
    plan = {"without": without, "first": first}
    made = new_round(transaction, repository, branch, kind="revocation", base=tip, policy=policy, plan=plan)
    again = _again(transaction, made, tip, first)
    record: dict[str, Any] = {
        "format": FORMAT,
        "kind": "revocation",
        "model": repository.full_name,
        "branch": branch,
        "number": made.number,
        "without": without,
        "left_out": [
            {"contribution": one.number, "account": one.account.name, "why": "revoked"}
            for one in sorted({one.number: one for _, one in owed}.values(), key=lambda one: one.number)
        ],
        **again,
    }
    said = ", ".join(f"#{number}" for number in without)
    message = f"round {made.number} of {branch}: fused anew without {said}"
    note(transaction, None, "round.revoke", branch, repository=repository.id, round=made.number, without=without)
    ask(transaction, made, Stage.FUSING, {"base": tip, "message": message, "record": record})
    return made


def _again(transaction: Transaction, made: Round, tip: str, first: int) -> dict[str, Any]:
    """The steps that lead from before the first affected round to what the tip should have been."""
    rounds = list(
        transaction.scalars(
            select(Round)
            .where(
                Round.repository_id == made.repository_id,
                Round.branch == made.branch,
                Round.state == Stage.PUBLISHED,
            )
            .order_by(Round.number)
        )
    )
    # What an earlier revocation has undone since stays undone: begin where it began.
    while (
        earlier := min((r.plan["first"] for r in rounds if r.kind == "revocation" and r.number > first), default=first)
    ) < first:
        first = earlier
    rounds = [r for r in rounds if r.number >= first]
    steps: list[dict[str, Any]] = []
    inputs: dict[int, Input] = {}
    corrected = {rounds[0].base: rounds[0].base}  # commit -> the version, or step, that is in its place
    methods: dict[str, None] = {}

    def add(recipe: Any, onto: str) -> str:
        steps.append(step(recipe, onto))
        return f"step {len(steps)}"

    last = rounds[0].base
    for one in rounds:
        if one.base != last:  # somebody pushed in between: what they changed stays changed
            corrected[one.base] = _kept(corrected[last], last, one.base, add)
        onto = corrected[one.base]
        if one.kind == "rollback":
            to = one.plan["commit"]
            corrected[one.commit or ""] = corrected.get(to, to)
            inputs = _inputs_of(transaction, one, inputs)
        elif one.kind == "revocation":
            corrected[one.commit or ""] = onto  # which is what is without them already
        else:
            given = [
                Input.of(share.contribution, share.weight)
                for share in shares(transaction, one)
                if not share.dropped and share.contribution.state != Offered.REVOKED
            ]
            how = read_policy(one.policy).fuse
            inputs |= {each.contribution: each for each in given}
            if given:
                recipe = recipe_of(how, given, onto)
                methods[recipe.merge_method] = None
                onto = add(recipe, onto)
            corrected[one.commit or ""] = onto
        last = one.commit or ""
    if tip != last:
        corrected[tip] = _kept(corrected[last], last, tip, add)
    return {
        "steps": steps,
        "result": corrected[tip],
        "method": ", ".join(methods) or "nothing",
        "inputs": [inputs[number].said() for number in sorted(inputs)],
        "approximate": len(steps) > 1,
    }


def _kept(onto: str, before: str, after: str, add: Any) -> str:
    """A change that somebody pushed, on what is in its base's place."""
    if onto == before:
        return after
    kept: str = add(moved(after, before, onto), onto)
    return kept


def _inputs_of(transaction: Transaction, rollback: Round, inputs: dict[int, Input]) -> dict[int, Input]:
    """What is left of the inputs after a rollback: those of the rounds up to the version."""
    upto = rollback.plan["round"]
    kept = set(
        transaction.scalars(
            select(Contribution.number)
            .join(Share, Share.contribution_id == Contribution.id)
            .join(Round, Round.id == Share.round_id)
            .where(Round.repository_id == rollback.repository_id, Round.branch == rollback.branch, Round.number <= upto)
        )
    )
    return {number: one for number, one in inputs.items() if number in kept}
