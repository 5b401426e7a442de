"""Policies, rounds, releases; deciding, revoking, rolling back."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field

from ..database import Release, Repository, Round
from ..rounds import branching, reading
from ..rounds.deciding import Decision, decide, find
from ..rounds.opening import start
from ..rounds.revoking import in_releases, revoke
from ..rounds.rolling import roll_back
from ..suites import set_suite
from .depends import Maintains, Reads, TheHub
from .values import Before, Body, Id, Limit, Row, paged

router = APIRouter(prefix="/repositories/{owner}/{name}", tags=["rounds"])
Name = Annotated[str, Field(min_length=1, max_length=200)]


class Written(Body):
    """A YAML document."""

    text: Annotated[str, Field(max_length=100_000)]


class OfBranch(Body):
    """A branch."""

    branch: Name = "main"


class Decided(Body):
    """What is to become of a round."""

    decision: Decision


class Revocation(Body):
    """Whose contributions are revoked, or which one is."""

    account: Annotated[str | None, Field(max_length=96)] = None
    contribution: Row | None = None
    reason: Annotated[str, Field(max_length=1000)] = ""


class Version(Body):
    """A release."""

    version: Annotated[str, Field(max_length=40)]


@router.get("/policies")
def policies(hub: TheHub, seen: Reads) -> dict[str, Any]:
    """Of all branches that have one."""
    with hub.database.reading() as transaction:
        return {"policies": [reading.said_policy(one) for one in reading.policies(transaction, seen.repository)]}


@router.get("/policies/{branch:path}")
def read_policy(hub: TheHub, seen: Reads, branch: str) -> dict[str, Any]:
    """A branch's, as it was written."""
    with hub.database.reading() as transaction:
        return reading.said_policy(branching.find(transaction, seen, branch))


@router.put("/policies/{branch:path}")
def set_policy(hub: TheHub, seen: Maintains, branch: str, written: Written) -> dict[str, Any]:
    """Give a branch one; see docs/formats/hub-policy.md."""
    with hub.database.writing() as transaction:
        return reading.said_policy(branching.set_policy(transaction, seen, branch, written.text))


@router.delete("/policies/{branch:path}", status_code=204)
def remove_policy(hub: TheHub, seen: Maintains, branch: str) -> None:
    """Let no more rounds begin by themselves."""
    with hub.database.writing() as transaction:
        branching.remove_policy(transaction, seen, branch)


@router.get("/suite")
def read_suite(hub: TheHub, seen: Reads) -> dict[str, Any]:
    """What versions are judged by, as it was written."""
    with hub.database.reading() as transaction:
        row = transaction.get_one(Repository, seen.repository.id)
        return {"text": row.suite, "hash": row.suite_hash}


@router.put("/suite")
def write_suite(hub: TheHub, seen: Maintains, written: Written) -> dict[str, Any]:
    """Give the repository a suite, or none."""
    with hub.database.writing() as transaction:
        return {"text": written.text, "hash": set_suite(transaction, seen, written.text)}


@router.get("/rounds")
def rounds(
    hub: TheHub, seen: Reads, branch: str | None = None, before: Before = None, limit: Limit = 50
) -> dict[str, Any]:
    """Newest first; `next` is the `before` of the page that follows."""
    with hub.database.reading() as transaction:
        found = reading.newest(transaction, Round, seen.repository, branch=branch, before=before, limit=limit)
        return paged("rounds", found, reading.said, limit)


@router.post("/rounds", status_code=201)
def begin(hub: TheHub, seen: Maintains, wanted: OfBranch) -> dict[str, Any]:
    """Begin one now, with what there is."""
    with hub.database.writing() as transaction:
        return reading.said(start(hub, transaction, seen, wanted.branch))


@router.get("/rounds/{round_id}")
def read_round(hub: TheHub, seen: Reads, round_id: Id) -> dict[str, Any]:
    """One, with what went in, what the gate said, and how far it moved."""
    with hub.database.reading() as transaction:
        return reading.said_whole(transaction, find(transaction, seen, round_id))


@router.post("/rounds/{round_id}/decision")
def decided(hub: TheHub, seen: Maintains, round_id: Id, wanted: Decided) -> dict[str, Any]:
    """Publish one that is held, give one up, or try again what has failed."""
    with hub.database.writing() as transaction:
        return reading.said(decide(hub, transaction, seen, round_id, wanted.decision))


@router.get("/releases")
def releases(
    hub: TheHub, seen: Reads, branch: str | None = None, before: Before = None, limit: Limit = 50
) -> dict[str, Any]:
    """Newest first; `next` is the `before` of the page that follows."""
    with hub.database.reading() as transaction:
        found = reading.newest(transaction, Release, seen.repository, branch=branch, before=before, limit=limit)
        return paged("releases", found, reading.said_release, limit)


@router.get("/releases/{version}")
def read_release(hub: TheHub, seen: Reads, version: str) -> dict[str, Any]:
    """One, with the record that it was made from."""
    with hub.database.reading() as transaction:
        found = reading.release(transaction, seen.repository, version)
    commit = hub.store(seen.repository).load_commit(found.commit)
    return reading.said_release(found) | {"tree": commit.tree, "content": commit.content, "record": dict(commit.record)}


@router.post("/revocations", status_code=201)
def revocation(hub: TheHub, seen: Maintains, wanted: Revocation) -> dict[str, Any]:
    """Revoke an account's contributions, or one: `released`, which a release has, are taken out by fusing it anew."""
    with hub.database.writing() as transaction:
        found = revoke(
            hub,
            transaction,
            seen,
            account=wanted.account,
            number=wanted.contribution,
            reason=wanted.reason,
        )
        released = in_releases(transaction, [one.id for one in found])
        return {"revoked": [one.number for one in found], "released": released}


@router.post("/rollbacks", status_code=201)
def rollback(hub: TheHub, seen: Maintains, wanted: Version) -> dict[str, Any]:
    """Release an earlier version again, on top."""
    with hub.database.writing() as transaction:
        return reading.said(roll_back(hub, transaction, seen, wanted.version))
