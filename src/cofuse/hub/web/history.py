"""How a repository's releases came to be, as the nodes of its lineage."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session as Transaction

from ..database import Account, Contribution, Release, Repository, Round, Share
from ..states import Offered
from .charts.lineage import Node, Part
from .words import day, state_word

ROUNDS = 16  # that are drawn


def nodes(transaction: Transaction, repository: Repository, at: Callable[..., str], most: int = ROUNDS) -> list[Node]:
    """Releases and rounds, the newest first, each round below the release that came of it.

    Args:
        transaction: where.
        repository: whose.
        at: makes a path below the repository's.
        most: rounds.
    """
    found = list(
        transaction.scalars(
            select(Round).where(Round.repository_id == repository.id).order_by(Round.id.desc()).limit(most)
        )
    )
    releases = list(
        transaction.scalars(
            select(Release).where(Release.repository_id == repository.id).order_by(Release.id.desc()).limit(most + 1)
        )
    )
    parts = _parts(transaction, [one.id for one in found], at)
    came = {one.round_id: one for one in releases if one.round_id is not None}
    made: list[tuple[float, int, Node]] = []
    for release in releases:
        made.append((release.created, 1, _release(release, at)))
    for one in found:
        last = came.get(one.id)
        made.append((one.created if last is None else last.created, 0, _round(one, parts[one.id], at)))
    ordered = [node for _, _, node in sorted(made, key=lambda row: row[:2], reverse=True)]
    return _leading_back(ordered, found, releases)


def _release(one: Release, at: Callable[..., str]) -> Node:
    where = at("tree", one.version)
    return Node("release", where, one.version, day(one.created), f"release {one.version}, {day(one.created)}")


def _round(one: Round, parts: Sequence[Part], at: Callable[..., str]) -> Node:
    used = sum(part.state != "dropped" for part in parts)
    name = _name(one)
    said = f"{name}, {state_word(one.state)}" + (f", {used} of {len(parts)} contributions" if parts else "")
    without = ", ".join(f"#{number}" for number in one.plan.get("without", ()))
    note = f"without {without}" if without else f"to {one.plan.get('to')}" if one.kind == "rollback" else one.reason
    return Node(one.kind, round_path(one, at), name, note or state_word(one.state), said, one.state, parts)


def _leading_back(found: list[Node], rounds: Sequence[Round], releases: Sequence[Release]) -> list[Node]:
    """The same; what goes back to an earlier release says to which."""
    versions = {one.commit: one.version for one in releases}
    bases = {(one.branch, one.number): one.base for one in rounds}
    target: dict[str, str] = {}
    for one in rounds:
        if one.kind == "rollback":
            target[_name(one)] = str(one.plan.get("to"))
        elif one.kind == "revocation":  # fused anew from where the first round that had one of them began
            target[_name(one)] = versions.get(bases.get((one.branch, one.plan.get("first", 0)), ""), "")
    places = {node.name: i for i, node in enumerate(found) if node.kind == "release"}
    return [replace(node, back=places.get(target.get(node.name, ""))) for node in found]


def _name(one: Round) -> str:
    return f"{one.kind} {one.number}"


def _parts(transaction: Transaction, rounds: Sequence[int], at: Callable[..., str]) -> dict[int, list[Part]]:
    query = (
        select(Share.round_id, Share.weight, Share.dropped, Contribution.number, Contribution.state, Account.name)
        .join(Contribution, Contribution.id == Share.contribution_id)
        .join(Account, Account.id == Contribution.account_id)
        .where(Share.round_id.in_(rounds))
        .order_by(Contribution.number)
    )
    found: dict[int, list[Part]] = defaultdict(list)
    for round_id, weight, dropped, number, state, name in transaction.execute(query):
        how = "dropped" if dropped else "revoked" if state == Offered.REVOKED else "in"
        said = f"#{number} by {name}" + (f", left out: {dropped}" if dropped else f", weight {weight:.3g}")
        said += ", revoked since" if how == "revoked" else ""
        found[round_id].append(Part(at("contributions", number), said, how))
    return found


def round_path(one: Round, at: Callable[..., Any]) -> str:
    """The page of a round."""
    return str(at("rounds", one.branch, one.number))
