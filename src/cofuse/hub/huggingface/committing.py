"""A commit, from the changes that a client sends: all of it or nothing, and never over what somebody else has done."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

from sqlalchemy import select
from sqlalchemy.orm import Session as Transaction

from ...checkpoint.disk import SafetensorsFile
from ...errors import CheckpointError, CofuseError, FullError, RefError, StoreError
from ...store import Store
from ...store.changing import change
from ...store.commits import Commit, load_commit
from ...store.refs import HEADS, PULLS, check_ref_name
from ...store.sha256 import known_sha256, note_sha256
from ...store.trees import Tree, Weights, load_tree
from .. import contributions, uploads
from ..access.audit import note
from ..access.roles import Role
from ..database import Contribution, Repository, Upload
from ..faults import Conflict, Denied, Full, Invalid, NoFile, NoRevision, Refused, Unknown
from ..files import Entry, is_large
from ..hub import Hub
from ..quotas import charge
from ..repositories import Seen
from ..states import Offered
from .changes import Changes
from .names import check_bytes
from .versions import DEFAULT, resolved

_TRIES = 5  # that a commit which nobody said where to put is put on a branch that moves meanwhile


class Moved(Conflict):
    """The branch is not where the client has seen it."""

    status: ClassVar[int] = 412


def commit(hub: Hub, seen: Seen, revision: str, changes: Changes) -> Commit:
    """Put changes on a branch, as a maintainer.

    Args:
        hub: whose.
        seen: the repository, as who commits has it.
        revision: the branch.
        changes: what is to change.

    Raises:
        Denied: no maintainer.
        NoRevision: no such branch.
        NoFile: what is to be removed is not there.
        Moved: the branch is not at the commit that the changes are said to come after.
        Conflict: it moves all the time.
        Refused: a file is not allowed, or damaged.
        Full: there is no room.
    """
    seen.must(Role.MAINTAIN)
    store = hub.store(seen.repository)
    branch = branch_of(store, revision)
    for left in reversed(range(_TRIES)):
        tip = store.refs.get(HEADS + branch)
        _check_parent(changes.parent, tip)
        made, places = _assemble(hub, seen, store, tip, changes)
        if tip is not None and (before := load_commit(store.objects, tip)).tree == made.tree:
            return before  # nothing is new: what clients have left out, or sent again
        try:
            with hub.database.writing() as transaction:
                _account(hub, transaction, seen, made, places, branch)
                # Last, so that neither is there without the other but for a kill right here, which costs nothing.
                store.refs.update(HEADS + branch, made.id, expect=tip)
        except RefError:
            if changes.parent is not None:
                raise _moved(changes.parent) from None
            if not left:
                raise Conflict("the branch moves all the time", got=branch, hint="try again") from None
            continue
        return made
    raise Conflict("the branch moves all the time", got=branch)


def propose(hub: Hub, seen: Seen, revision: str, changes: Changes) -> Contribution:
    """Offer changes of a branch as a contribution, or as what was announced under `refs/pr/NUMBER`.

    Raises as `commit` and `contributions.offer` do.
    """
    seen.must(Role.CONTRIBUTE)
    store = hub.store(seen.repository)
    draft = _draft(hub, seen, revision)
    branch = branch_of(store, revision) if draft is None else draft.branch
    base = store.refs.get(HEADS + branch) if changes.parent is None else resolved(store, changes.parent)
    if base is None:
        raise NoRevision("nothing has been committed yet", got=branch, hint="a contribution needs something to change")
    made, places = _assemble(hub, seen, store, base, changes)
    if draft is not None and draft.sent.get("commit") == made.id:
        return draft  # sent again, because the answer got lost
    offer = contributions.Offer(
        title=changes.summary.strip().splitlines()[0].strip()[:200],
        branch=branch,
        base=base,
        commit=made.id,
        message=changes.description[:20_000],
        nonce=made.id,
    )
    with hub.database.writing() as transaction:
        _account(hub, transaction, seen, made, places, None)
        if draft is not None:
            draft = contributions.find(transaction, seen.repository, draft.number, locked=True)
            _must_be_draft(seen, draft)
        return contributions.offer(hub, transaction, seen, offer, draft)


def _draft(hub: Hub, seen: Seen, revision: str) -> Contribution | None:
    number = revision.removeprefix(PULLS)
    if number == revision:
        return None
    if not (number.isascii() and number.isdigit()):
        raise NoRevision("no such contribution", got=ascii(revision[:80]))
    with hub.database.reading() as transaction:
        try:
            found = contributions.find(transaction, seen.repository, int(number[:20]))
        except Unknown:
            raise NoRevision("no such contribution", got=ascii(revision[:80])) from None
    if not found.sent:
        _must_be_draft(seen, found)
    return found


def _must_be_draft(seen: Seen, found: Contribution) -> None:
    if found.state != Offered.DRAFT or found.sent or found.account_id != seen.visitor.known():
        raise Denied(
            "a contribution that has been handed in is not changed",
            got=f"#{found.number}: {found.state}",
            hint="withdraw it, and offer another; more than 250 files are offered by: cofuse contribute",
        )


def branch_of(store: Store, revision: str) -> str:
    """The branch that a revision names; `main` need not be there in an empty repository.

    Raises:
        NoRevision: it names none.
    """
    branch = revision.removeprefix(HEADS)
    try:
        there = store.refs.get(HEADS + check_ref_name(branch)) is not None
    except RefError:
        there = False
    if not there and not (branch == DEFAULT and not store.branches()):
        raise NoRevision("no such branch", got=ascii(branch[:200]), hint="make it first: create_branch")
    return branch


def _check_parent(said: str | None, tip: str | None) -> None:
    if said is not None and (tip is None or not tip.startswith(said)):
        raise _moved(said)


def _moved(said: str) -> Moved:
    return Moved("the branch has moved since", expected=said, hint="look at what is new there, and commit on top of it")


def _assemble(
    hub: Hub, seen: Seen, store: Store, parent: str | None, changes: Changes
) -> tuple[Commit, Mapping[str, tuple[Path, str | None]]]:
    """The commit that changes make of a parent, on no branch yet, and where its new bytes are, with hashes as far as known."""
    before = load_tree(store.objects, load_commit(store.objects, parent).tree) if parent else Tree({}, None)
    places: dict[str, tuple[Path, str | None]] = {path: (place, None) for path, place in changes.places.items()}
    copied: dict[str, Entry] = {}
    there = stored(store, before) if changes.large else {}
    for path, oid in changes.large.items():
        place = None if oid in there else uploads.blob(hub, seen.repository.id, oid)
        if place is not None:
            places[path] = place, oid
        elif oid in there and isinstance(there[oid], Weights) == path.endswith(".safetensors"):
            copied[path] = there[oid]
        elif oid in there:
            places[path] = hub.files.file(store, there[oid])  # kept in another way under a name like this
        else:
            raise Invalid("this has not been uploaded", got=f"{path[:200]}: SHA-256 {oid}", hint="upload it again")
    removed = set(_removed(before, changes)) - set(places) - set(copied)
    for path, (place, _) in places.items():
        _check(path, place)
    try:
        made = change(
            store,
            parent,
            {path: place for path, (place, _) in places.items()},
            removed,
            copied=copied,
            message=changes.message,
            author=seen.visitor.name,
        )
    except CheckpointError as error:
        raise Refused(error.what, got=error.got, expected=error.expected) from None
    except FullError:
        raise Full("the hub's disk is full", hint="its operator has to make room") from None
    except StoreError as error:
        if error.what in ("a path is both file and folder", "a path that cannot be kept"):
            raise Invalid(error.what, got=error.got) from None
        raise
    store.refs.keep([made.id])  # here, and not when the branch moves, for which others wait
    _remember(hub, store, made, places)
    return made, places


def _check(path: str, place: Path) -> None:
    """Refuse bytes that are not what their name says."""
    if not path.endswith(".safetensors"):
        check_bytes(path, place)
        return
    try:
        SafetensorsFile(place).close()
    except CheckpointError as error:
        # Not where it lies here, but what the sender calls it.
        where = (error.where or path).replace(str(place), path)
        raise Refused(error.what, where=where, got=error.got, expected=error.expected) from None


def _removed(before: Tree, changes: Changes) -> Iterator[str]:
    for path in changes.files:
        if path not in before.files:
            raise NoFile("A file with this name doesn't exist", got=ascii(path[:200]))  # clients look for these words
        yield path
    inside: dict[str, list[str]] = {folder: [] for folder in changes.folders}
    for path in before.files if inside else ():
        folder = path
        while folder := folder.rpartition("/")[0]:
            if folder in inside:
                inside[folder].append(path)
    for folder, paths in inside.items():
        if not paths:
            raise NoFile("A file with this name doesn't exist", got=ascii(f"{folder[:200]}/"))
        yield from paths


def stored(store: Store, *more: Tree) -> dict[str, Entry]:
    """Large files that need not be sent again, by hash: of what branches and tags name, and of other trees of the store."""
    tips = {load_commit(store.objects, tip).tree for tip in (*store.branches().values(), *store.tags().values())}
    found = {}
    for tree in (*(load_tree(store.objects, tip) for tip in tips), *more):
        for path, entry in tree.files.items():
            if is_large(path, entry.size) and (known := known_sha256(store.objects, entry)) is not None:
                found[known] = entry
    return found


def _remember(hub: Hub, store: Store, made: Commit, places: Mapping[str, tuple[Path, str | None]]) -> None:
    """Note the hashes that are known, and keep the files as they came: they are what is downloaded next."""
    files = load_tree(store.objects, made.tree).files
    for path, (place, oid) in places.items():
        if oid is not None:
            note_sha256(store.objects, files[path], oid)
            try:
                hub.files.adopt(place, oid)
            except (OSError, CofuseError):
                continue  # it is made again when it is asked for


def _account(
    hub: Hub,
    transaction: Transaction,
    seen: Seen,
    made: Commit,
    places: Mapping[str, tuple[Path, str | None]],
    branch: str | None,
) -> None:
    """Count what is kept, let go of what was uploaded for it, and note who did it."""
    repository = transaction.get_one(Repository, seen.repository.id)
    size = sum(place.stat().st_size for place, _ in places.values())
    oids = {oid for _, oid in places.values() if oid is not None}
    query = select(Upload.key).where(Upload.repository_id == repository.id, Upload.sha256.in_(oids), Upload.done)
    for key in list(transaction.scalars(query)):
        uploads.discard(hub, transaction, key)
    charge(transaction, hub.settings.limits, repository, size)
    repository.updated = time.time()
    if branch is not None:
        where = f"{repository.full_name}@{branch}"
        note(transaction, seen.visitor, "commit", where, repository=repository.id, commit=made.id)
