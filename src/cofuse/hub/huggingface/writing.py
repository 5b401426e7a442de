"""What clients send to change a model: how they should send its files, and the commit."""

from __future__ import annotations

import secrets
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse

from ...store.places import explained
from ...store.refs import PULLS
from ..api.depends import Asks, Contributes, TheHub
from ..api.streams import receive
from ..faults import Invalid, NoRevision, TooLarge
from ..files import is_large
from ..frontmatter import front_matter
from ..hub import Hub
from ..repositories import Seen
from . import changes, committing
from .addresses import revision_and_path, url_of
from .lfs import Loose
from .names import LEFT_OUT, check_kind, check_name
from .reading import MODEL
from .versions import DEFAULT, VERSIONS, Version, short

router = APIRouter(tags=["hugging face"])


class File(Loose):
    """A file that is about to be sent."""

    path: Annotated[str, Field(max_length=4096)]
    size: Annotated[int, Field(ge=0, lt=1 << 63)] = 0
    sample: str = ""


class Files(Loose):
    """Files that are about to be sent."""

    files: Annotated[list[File], Field(max_length=1000)]


class Card(Loose):
    """A README."""

    content: str


@router.post("/api/validate-yaml")
def validate(visitor: Asks, card: Card) -> JSONResponse:
    """Whether the values at the start of a card can be read."""
    try:
        front_matter(card.content)
    except Invalid as error:
        message = f"{error.what}: {error.got}" if error.got else error.what
        return JSONResponse({"errors": [{"message": message}], "warnings": []}, 400)
    return JSONResponse({"errors": [], "warnings": []})


@router.post(MODEL + "/preupload/{rest:path}")
def preupload(hub: TheHub, seen: Contributes, wanted: Files, request: Request) -> dict[str, Any]:
    """How files are to be sent: large ones, and weights, by themselves; small ones inside the commit.

    Each with the hash that it has now, so that what has not changed is not sent.
    """
    revision, _ = revision_and_path(request, skip=5)
    version: Version | None = None
    try:
        version = VERSIONS.get(hub, seen.repository, revision)
    except NoRevision:
        committing.branch_of(hub.store(seen.repository), revision)  # an empty repository is no mistake
    rows = []
    for file in wanted.files:
        ignored = LEFT_OUT.fullmatch(file.path.rpartition("/")[2]) is not None
        if not ignored:
            check_kind(check_name(file.path))
        if file.size > hub.settings.limits.file:
            raise TooLarge(
                "the file is too large", where=file.path[:200], expected=f"at most {hub.settings.limits.file}"
            )
        large = is_large(file.path, file.size)
        row = {"path": file.path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": ignored}
        entry = None if version is None else version.tree.files.get(file.path)
        if version is not None and entry is not None and entry.size == file.size:
            row["oid"] = version.tag(file.path, entry)
        rows.append(row)
    return {"files": rows}


@router.post(MODEL + "/commit/{rest:path}")
async def commit(hub: TheHub, seen: Contributes, request: Request, create_pr: bool = False) -> dict[str, Any]:
    """Commit: on a branch, as a maintainer; or as a contribution, with `create_pr`."""
    revision, _ = revision_and_path(request, skip=5)
    # On the disk, in no folder: what a kill leaves there is swept with what is left of uploads.
    place = hub.uploads / f"commit-{secrets.token_hex(16)}"
    url = url_of(hub, request)
    try:
        with explained("a commit"):
            with await run_in_threadpool(open, place, "xb") as body:
                await receive(request, changes.MAX_BODY, body.writelines)
            return await run_in_threadpool(_commit, hub, seen, revision or DEFAULT, place, create_pr, url)
    finally:
        place.unlink(missing_ok=True)


def _commit(hub: Hub, seen: Seen, revision: str, body: Any, create_pr: bool, url: str) -> dict[str, Any]:
    here = f"{url}/{seen.repository.full_name}"
    with hub.store(seen.repository).objects.places.staged() as folder:
        found = changes.read(body, folder)
        if create_pr or revision.startswith(PULLS):
            made = committing.propose(hub, seen, revision, found)
            oid = short(made.sent["commit"])
            pull = f"{here}/discussions/{made.number}"
            return {"success": True, "commitOid": oid, "commitUrl": f"{here}/commit/{oid}", "pullRequestUrl": pull}
        oid = short(committing.commit(hub, seen, revision, found).id)
    return {"success": True, "commitOid": oid, "commitUrl": f"{here}/commit/{oid}", "hookOutput": ""}
