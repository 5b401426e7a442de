"""Offering: what somebody hands in becomes a contribution, and is asked to be looked at."""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session as Transaction

from ...store import Store
from ...store.refs import HEADS
from .. import uploads
from ..access.audit import note
from ..access.roles import Role
from ..database import Account, Contribution, Repository, Upload
from ..faults import Conflict, TooOften
from ..hub import Hub
from ..repositories import Seen
from ..states import Offered
from ..work import queue
from .bases import base_of, check_commit
from .typed import MAX_TEXT, check, checked_text

ACCEPTED = "accepted"  # the label that maintainers give by accepting, and nothing else: policies may ask for it
_KEPT = 30 * 86400.0  # seconds that what was handed in waits to be looked at
BUSY = (Offered.DRAFT, Offered.RECEIVED, Offered.OPEN, Offered.FUSING)  # states that count towards an account's limit


@dataclass(frozen=True)
class Offer:
    """What somebody hands in: exactly one of `commit`, `weights` and `patch`, and what they say of it.

    Attributes:
        title: in a line.
        branch: whose policy fuses it.
        base: the commit it was trained from, which the branch has, or had. Left out: where the commit's history meets the
            branch's; of weights and patches, the branch's tip.
        commit: one that was delivered into the repository's store.
        weights: finished uploads, by file name: safetensors alone.
        patch: a finished upload.
        fisher: the Fisher of these weights: finished uploads by file name, or a commit of it that was delivered.
        message: as long as it needs to be.
        data: what it was trained on.
        licence: of the weights.
        examples: how many it was trained on.
        metrics: what its author measured, by name; shown beside what the hub measures, never believed.
        labels: words.
        signature: JSON of `bundle` (OpenSSF model signature of what was handed in) and `key` (PEM, public).
        nonce: the same one with the same content is the same contribution; one is drawn when it is left out.
    """

    title: str
    branch: str = "main"
    base: str | None = None
    commit: str | None = None
    weights: Mapping[str, str] = field(default_factory=dict)
    patch: str | None = None
    fisher: Mapping[str, str] | str | None = None
    message: str = ""
    data: str = ""
    licence: str = ""
    examples: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    signature: str | None = None
    nonce: str = ""


def offer(
    hub: Hub, transaction: Transaction, seen: Seen, wanted: Offer, draft: Contribution | None = None
) -> Contribution:
    """Hand in a contribution; a worker looks at it next.

    Args:
        hub: whose.
        transaction: one that writes.
        seen: the repository, as who offers it has it.
        wanted: what.
        draft: one that `begin` has made, of the same account, which becomes it.

    Raises:
        Denied: the account may not contribute here.
        Invalid: the offer is no offer.
        Refused: the base is none that the branch has, or had.
        Conflict: the nonce was used for something else.
        TooOften: the account has as many contributions under way here as it may.
        Unknown: no such branch, commit or upload.
    """
    seen.must(Role.CONTRIBUTE)
    account = seen.visitor.known()
    check(wanted)
    # The numbers of a repository's contributions are given out one after another.
    repository = transaction.get_one(Repository, seen.repository.id, with_for_update={"of": Repository})
    earlier = wanted.nonce and transaction.scalar(
        select(Contribution).where(
            Contribution.repository_id == repository.id,
            Contribution.account_id == account,
            Contribution.nonce == wanted.nonce,
        )
    )
    if earlier:
        return _again(transaction, earlier, wanted)
    if draft is None:
        _check_limit(hub, transaction, repository, account)
    base = base_of(transaction, hub.store(repository), repository, wanted.branch, wanted.base, wanted.commit)
    values = {
        "branch": wanted.branch,
        "base": base,
        "source": "commit" if wanted.commit else "patch" if wanted.patch else "weights",
        "sent": {"says": _says(wanted), **_take(hub, transaction, seen, wanted)},
        "nonce": wanted.nonce or secrets.token_hex(16),
        "state": Offered.RECEIVED,
        "title": wanted.title.strip(),
        "message": wanted.message,
        "data": wanted.data,
        "licence": wanted.licence,
        "examples": wanted.examples,
        "metrics": dict(wanted.metrics),
        "labels": [one for one in dict.fromkeys(wanted.labels) if one != ACCEPTED],
        "signature": wanted.signature,
    }
    made = _write(transaction, seen, repository, draft, values)
    note(transaction, seen.visitor, "contribution.offer", made.full_name, repository=repository.id, source=made.source)
    ask_screening(transaction, hub.store(repository), made)
    return made


def begin(hub: Hub, transaction: Transaction, seen: Seen, branch: str, title: str, message: str) -> Contribution:
    """Announce a contribution whose weights come next (`offer` with it as the draft); raises as `offer` does."""
    seen.must(Role.CONTRIBUTE)
    account = seen.visitor.known()
    checked_text("title", title, 200)
    checked_text("message", message, MAX_TEXT)
    repository = transaction.get_one(Repository, seen.repository.id, with_for_update={"of": Repository})
    _check_limit(hub, transaction, repository, account)
    values = {
        "branch": branch,
        "base": base_of(transaction, hub.store(repository), repository, branch),
        "source": "commit",
        "sent": {},
        "nonce": secrets.token_hex(16),
        "state": Offered.DRAFT,
        "title": title,
        "message": message,
        "metrics": {},
        "labels": [],
    }
    made = _write(transaction, seen, repository, None, values)
    note(transaction, seen.visitor, "contribution.begin", made.full_name, repository=repository.id)
    return made


def ask_screening(transaction: Transaction, store: Store, made: Contribution, attempt: int = 0) -> None:
    """Ask for a contribution to be looked at; with a higher `attempt`, once more."""
    payload = {
        "contribution": made.id,
        "repository": made.repository.full_name,
        "number": made.number,
        "account": made.account.name,
        "branch": made.branch,
        "base": made.base,
        "source": made.source,
        "sent": {key: value for key, value in made.sent.items() if key != "says"},
        "title": made.title,
        "data": made.data,
        "licence": made.licence,
        "examples": made.examples,
        "metrics": made.metrics,
        "signature": made.signature,
        # The Fisher that a repository has for predictions is what its branch of that name holds.
        "fisher": store.refs.get(HEADS + "fisher"),
    }
    again = f":{attempt}" if attempt else ""
    queue.ask(transaction, "screen", f"screen:{made.id}{again}", made.repository_id, payload)


def _write(
    transaction: Transaction,
    seen: Seen,
    repository: Repository,
    draft: Contribution | None,
    values: Mapping[str, Any],
) -> Contribution:
    """The row of a contribution, with the next number; a draft keeps its own."""
    account, now = seen.visitor.known(), time.time()
    made = Contribution(number=1 + (transaction.scalar(_last(repository)) or 0)) if draft is None else draft
    for name, value in values.items():
        setattr(made, name, value)
    made.account, made.repository = transaction.get_one(Account, account), repository
    made.created = made.updated = now
    transaction.add(made)
    transaction.flush()
    return made


def _again(transaction: Transaction, earlier: Contribution, wanted: Offer) -> Contribution:
    """The contribution of a nonce, if it is what is wanted once more."""
    same = earlier.sent.get("says") == _says(wanted) and all(
        earlier.sent.get(part, {}).keys() == keys.keys()
        and all(
            key == earlier.sent[part][name]["key"] or _sha256(transaction, key) == earlier.sent[part][name]["sha256"]
            for name, key in keys.items()
        )
        for part, keys in _keys(wanted).items()
    )
    if not same:
        raise Conflict(
            "the nonce was used for another contribution",
            got=f"#{earlier.number}: {earlier.title}",
            hint="take a new nonce for what is new",
        )
    return earlier


def _says(wanted: Offer) -> str:
    """A hash of all that an offer says, but for uploads, whose keys differ when they are sent again."""
    said = {
        **{name: getattr(wanted, name) for name in ("title", "branch", "base", "commit", "message", "data", "licence")},
        "examples": wanted.examples,
        "metrics": dict(wanted.metrics),
        "labels": list(wanted.labels),
        "signature": wanted.signature,
        "fisher": wanted.fisher if isinstance(wanted.fisher, str) else None,
    }
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _keys(wanted: Offer) -> dict[str, dict[str, str]]:
    """Uploads, by what they are."""
    files = dict(wanted.weights) if wanted.patch is None else {"the.patch": wanted.patch}
    fisher = {} if wanted.fisher is None or isinstance(wanted.fisher, str) else dict(wanted.fisher)
    return {part: keys for part, keys in (("files", files), ("fisher", fisher)) if keys}


def _take(hub: Hub, transaction: Transaction, seen: Seen, wanted: Offer) -> dict[str, Any]:
    """What was handed in as it is kept; its uploads stay until they have been looked at."""
    taken: dict[str, Any] = {"commit": wanted.commit} if wanted.commit else {}
    if isinstance(wanted.fisher, str):
        check_commit(hub.store(seen.repository), wanted.fisher, "the Fisher")
        taken["fisher_commit"] = wanted.fisher
    for part, keys in _keys(wanted).items():
        taken[part] = {}
        for name, key in sorted(keys.items()):
            place = uploads.finished(hub, transaction, seen, key)
            row = transaction.get_one(Upload, key)
            row.expires = time.time() + _KEPT
            taken[part][name] = {"key": key, "sha256": _sha256(transaction, key), "size": place.stat().st_size}
    return taken


def _sha256(transaction: Transaction, key: str) -> str | None:
    row = transaction.get(Upload, key)
    return None if row is None else row.sha256


def _last(repository: Repository) -> Any:
    return select(func.max(Contribution.number)).where(Contribution.repository_id == repository.id)


def _check_limit(hub: Hub, transaction: Transaction, repository: Repository, account: int) -> None:
    most = hub.settings.limits.contributions
    busy = transaction.scalar(
        select(func.count())
        .select_from(Contribution)
        .where(
            Contribution.repository_id == repository.id,
            Contribution.account_id == account,
            or_(*(Contribution.state == state for state in BUSY)),
        )
    )
    if (busy or 0) >= most:
        raise TooOften(
            "too many contributions under way",
            where=repository.full_name,
            expected=f"at most {most} of an account",
            hint="withdraw some, or wait for the next round",
        )
