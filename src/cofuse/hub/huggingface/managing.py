"""Repositories, branches and tags, made and removed as Hugging Face's clients do."""

from __future__ import annotations

import time
from typing import Any, Literal

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse

from ...errors import RefError
from ...store.branches import delete_branch
from ...store.refs import HEADS, TAGS, check_ref_name
from ..access.audit import note
from ..access.roles import Role
from ..answers import answer
from ..api.depends import Asks, Maintains, TheHub
from ..database import Repository
from ..faults import Conflict, Denied, Invalid, NoRepository, NoRevision
from ..hub import Hub
from ..repositories import Seen, find, make, remove
from .addresses import revision_and_path, url_of
from .lfs import Loose
from .reading import MODEL
from .versions import DEFAULT, resolved

router = APIRouter(tags=["hugging face"])


class Named(Loose):
    """A repository by its name; the visitor's own where no owner is named."""

    name: str
    organization: str | None = None
    type: str | None = None
    visibility: Literal["public", "private"] | None = None
    private: bool | None = None


class Settings(Loose):
    """What is to change of a repository."""

    visibility: Literal["public", "private"] | None = None
    private: bool | None = None
    gated: Literal["auto", "manual"] | bool | None = None


class Start(Loose):
    """Where a branch begins."""

    startingPoint: str | None = None  # noqa: N815 - what clients call it


class Tag(Loose):
    """A tag."""

    tag: str
    message: str | None = None


@router.post("/api/repos/create")
def create(hub: TheHub, visitor: Asks, wanted: Named, request: Request) -> JSONResponse:
    """Make a repository."""
    _models_alone(wanted)
    visitor.known()
    owner = wanted.organization or visitor.name
    said = {"url": f"{url_of(hub, request)}/{owner}/{wanted.name}", "name": f"{owner}/{wanted.name}"}
    private = wanted.private if wanted.visibility is None else wanted.visibility == "private"
    try:
        with hub.database.writing() as transaction:
            made = make(transaction, visitor, hub.repositories, wanted.name, owner=owner, private=bool(private))
            hub.keep(made)
            said["id"] = f"{made.id:024x}"
    except Conflict as error:
        # Clients that do not mind that it is there read its URL from this answer.
        refused = answer(error)
        return JSONResponse({"error": error.what, **said}, 409, {"X-Error-Message": refused.headers["X-Error-Message"]})
    return JSONResponse(said)


@router.delete("/api/repos/delete")
def delete(hub: TheHub, visitor: Asks, wanted: Named) -> dict[str, str]:
    """Remove a repository, with all that is in it."""
    _models_alone(wanted)
    with hub.database.writing() as transaction:
        seen = find(transaction, visitor, wanted.organization or visitor.name, wanted.name)
        seen.must(Role.MAINTAIN)
        key = seen.repository.key
        remove(transaction, seen)
    hub.forget(key)
    return {"deleted": seen.repository.full_name}


@router.put(MODEL + "/settings")
def settings(hub: TheHub, seen: Maintains, wanted: Settings) -> dict[str, Any]:
    """Change who sees a repository."""
    if wanted.gated:
        raise Invalid("repositories cannot be gated here", hint="make it private, and grant roles")
    private = wanted.private if wanted.visibility is None else wanted.visibility == "private"
    with hub.database.writing() as transaction:
        found = transaction.get_one(Repository, seen.repository.id)
        if private is not None:
            found.private, found.updated = private, time.time()
            note(transaction, seen.visitor, "repository.change", found.full_name, repository=found.id, private=private)
    return {"private": found.private}


@router.post(MODEL + "/branch/{rest:path}")
def make_branch(hub: TheHub, seen: Maintains, request: Request, start: Start | None = None) -> dict[str, str]:
    """Make a branch."""
    rev = None if start is None else start.startingPoint
    return _make(hub, seen, HEADS, "branch", _name(request), rev or DEFAULT)


@router.delete(MODEL + "/branch/{rest:path}")
def remove_branch(hub: TheHub, seen: Maintains, request: Request) -> dict[str, str]:
    """Remove a branch."""
    name = _name(request)
    store = hub.store(seen.repository)
    if store.refs.get(HEADS + name) is None:
        raise NoRevision("no such branch", got=name)
    if store.refs.head() == HEADS + name:
        raise Denied("the main branch cannot be removed", got=name)
    delete_branch(store, name, force=True)
    return _noted(hub, seen, "branch.remove", name)


@router.post(MODEL + "/tag/{rest:path}")
def make_tag(hub: TheHub, seen: Maintains, request: Request, wanted: Tag) -> dict[str, str]:
    """Make a tag at a revision."""
    return _make(hub, seen, TAGS, "tag", _checked(wanted.tag), revision_and_path(request, skip=5)[0])


@router.delete(MODEL + "/tag/{rest:path}")
def remove_tag(hub: TheHub, seen: Maintains, request: Request) -> dict[str, str]:
    """Remove a tag."""
    name = _name(request)
    store = hub.store(seen.repository)
    commit = store.refs.get(TAGS + name)
    if commit is None:
        raise NoRevision("no such tag", got=name)
    store.refs.update(TAGS + name, None, expect=commit)
    return _noted(hub, seen, "tag.remove", name)


def _make(hub: Hub, seen: Seen, under: str, what: str, name: str, rev: str) -> dict[str, str]:
    store = hub.store(seen.repository)
    commit = resolved(store, rev)
    if store.refs.get(under + name) is not None:
        raise Conflict(f"there is a {what} of that name", got=name)
    try:
        store.refs.update(under + name, commit, expect=None)
    except RefError as error:
        raise Conflict(error.what, got=name) from None
    return _noted(hub, seen, f"{what}.make", name)


def _name(request: Request) -> str:
    # A slash in a name comes as %2F, or as it is.
    revision, path = revision_and_path(request, skip=5)
    return _checked(f"{revision}/{path}" if path else revision)


def _checked(name: str) -> str:
    if name.startswith("refs/"):
        raise Invalid("not a name for a branch or tag", got=ascii(name[:80]))
    try:
        return check_ref_name(name)
    except RefError as error:
        raise Invalid(error.what, got=error.got, expected=error.expected) from None


def _noted(hub: Hub, seen: Seen, action: str, name: str) -> dict[str, str]:
    with hub.database.writing() as transaction:
        note(transaction, seen.visitor, action, f"{seen.repository.full_name}@{name}", repository=seen.repository.id)
    return {"name": name}


def _models_alone(wanted: Named) -> None:
    if wanted.type not in (None, "model"):
        raise NoRepository("this hub has models alone", got=wanted.type[:40], expected="repo_type model")
