"""A repository's settings, for its maintainers."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path
from sqlalchemy import select
from starlette.responses import Response

from ..access.roles import WORDS, Role
from ..api import repositories
from ..database import Account, Branch, Grant, Release
from ..faults import Invalid
from ..rounds.branching import set_policy
from ..rounds.revoking import revoke
from ..rounds.rolling import roll_back
from ..suites import set_suite
from .depends import Maintains, Sent
from .history import round_path

router = APIRouter(include_in_schema=False)
Name = Annotated[str, Path(max_length=96)]


@router.get("/{owner}/{name}/settings")
def settings(page: Maintains) -> Response:
    """Visibility, roles, policies, the suite; revoking and rolling back."""
    own = page.seen.repository.id
    with page.hub.database.reading() as transaction:
        grants = list(
            transaction.execute(
                select(Account.name, Grant.role)
                .join(Grant, Grant.account_id == Account.id)
                .where(Grant.repository_id == own)
                .order_by(Account.name)
                .limit(500)
            )
        )
        policies = list(transaction.scalars(select(Branch).where(Branch.repository_id == own).order_by(Branch.name)))
        releases = list(
            transaction.scalars(
                select(Release).where(Release.repository_id == own).order_by(Release.id.desc()).limit(100)
            )
        )
    return page.show(
        "settings",
        tab="settings",
        grants=grants,
        policies=policies,
        releases=releases,
        branches=sorted(page.hub.store(page.seen.repository).branches()) or ["main"],
        roles=[word for word in WORDS if Role.of(word) <= page.seen.role],
    )


@router.post("/{owner}/{name}/settings")
def change(page: Maintains, sent: Sent) -> Response:
    """Change who sees it, and what it says of itself."""
    wanted = repositories.Change(private=sent.ticked("private"), description=sent.text("description", 2000))
    repositories.change(page.hub, page.seen, wanted)
    return page.go(page.at("settings"), "saved")


@router.post("/{owner}/{name}/settings/grants")
def grant(page: Maintains, sent: Sent) -> Response:
    """Give an account a role."""
    wanted = repositories.Role(role=sent.text("role", 16, needed=True))
    repositories.grant(page.hub, page.seen, sent.text("account", 96, needed=True), wanted)
    return page.go(page.at("settings"), "granted")


@router.post("/{owner}/{name}/settings/grants/{account}/remove")
def ungrant(page: Maintains, sent: Sent, account: Name) -> Response:
    """Take a role away."""
    repositories.withdraw(page.hub, page.seen, account)
    return page.go(page.at("settings"), "ungranted")


@router.post("/{owner}/{name}/settings/policy")
def policy(page: Maintains, sent: Sent) -> Response:
    """Give a branch a policy."""
    branch, written = sent.text("branch", 200, needed=True), sent.text("policy", 20_000)
    with page.hub.database.writing() as transaction:
        set_policy(transaction, page.now(transaction), branch, written)
    return page.go(page.at("settings"), "saved")


@router.post("/{owner}/{name}/settings/suite")
def suite(page: Maintains, sent: Sent) -> Response:
    """Say what versions are judged by."""
    with page.hub.database.writing() as transaction:
        set_suite(transaction, page.now(transaction), sent.text("suite", 100_000))
    return page.go(page.at("settings"), "saved")


@router.post("/{owner}/{name}/settings/revoke")
def revocation(page: Maintains, sent: Sent) -> Response:
    """Revoke an account's contributions, or one."""
    sent.confirmed()
    what, reason = sent.text("what", 96, needed=True), sent.text("reason", 1000)
    number = what.removeprefix("#")
    if what.startswith("#") and not (number.isascii() and number.isdigit() and len(number) < 10):
        raise Invalid("not the number of a contribution", got=ascii(what), expected="#12")
    with page.hub.database.writing() as transaction:
        seen = page.now(transaction)
        if what.startswith("#"):
            revoke(page.hub, transaction, seen, number=int(number), reason=reason)
        else:
            revoke(page.hub, transaction, seen, account=what, reason=reason)
    return page.go(page.at("rounds"), "revoked")


@router.post("/{owner}/{name}/settings/rollback")
def rollback(page: Maintains, sent: Sent) -> Response:
    """Release an earlier version again."""
    sent.confirmed()
    with page.hub.database.writing() as transaction:
        made = roll_back(page.hub, transaction, page.now(transaction), sent.text("version", 40, needed=True))
        path = round_path(made, page.at)
    return page.go(path, "rolled")
