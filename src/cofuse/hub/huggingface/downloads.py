"""Files of versions, as they are downloaded: whole or in ranges, with what caches need to know."""

from __future__ import annotations

import re
from urllib.parse import quote

from fastapi import APIRouter, Request
from starlette.responses import FileResponse, Response

from ..answers import answer
from ..api.depends import Asks, Reads, TheHub
from ..faults import NoFile, NoRepository
from .addresses import revision_and_path
from .versions import VERSIONS, Empty

router = APIRouter(tags=["hugging face"])
_FULL = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_YEAR = 365 * 86400
COUNTED = "config.json"  # who loads a model gets it once


class Sent(FileResponse):
    """A file, in larger pieces: ranges of one are read here, not by the kernel."""

    chunk_size = 1024 * 1024
    media_type = "application/octet-stream"  # for the API's description


@router.head("/{owner}/{name}/resolve/{rest:path}", include_in_schema=False)
@router.get(
    "/{owner}/{name}/resolve/{rest:path}",
    response_class=Sent,
    responses={206: {"description": "A range of it."}, 304: {"description": "It has not changed."}},
)
def resolve(hub: TheHub, seen: Reads, request: Request) -> Response:
    """A file of a version."""
    revision, path = revision_and_path(request, skip=3)
    try:
        version = VERSIONS.get(hub, seen.repository, revision)
    except Empty as error:
        raise NoFile(error.what, got=ascii(path[:200])) from None
    who = "private" if seen.repository.private else "public"
    headers = {
        "X-Repo-Commit": version.sha,
        # What a commit holds never changes; where a branch is has to be asked for anew.
        "Cache-Control": f"{who}, max-age={_YEAR}, immutable" if _FULL.fullmatch(revision) else f"{who}, no-cache",
        "Vary": "Authorization",
    }
    try:
        entry = version.entry(path)
    except NoFile as error:
        # With the commit, so that clients remember that it is not there.
        response = answer(error)
        response.headers["X-Repo-Commit"] = version.sha
        return response
    etag = f'"{version.tag(path, entry)}"'
    name = path.rpartition("/")[2]
    headers |= {
        "ETag": etag,
        "Accept-Ranges": "bytes",
        # Never shown by a browser: what somebody uploaded would act as a page of the hub.
        "Content-Disposition": f"attachment; filename*=UTF-8''{quote(name, safe='')}",
    }
    if etag in _tags(request.headers.get("if-none-match", "")):
        return Response(status_code=304, headers=headers)
    if request.method == "HEAD":
        headers |= {"Content-Length": str(entry.size), "Content-Type": "application/octet-stream"}
        return Response(headers=headers)
    if path == COUNTED and "range" not in request.headers:
        hub.tally.add(seen.repository.id)
    return Sent(version.place(entry), headers=headers, media_type="application/octet-stream")


@router.api_route("/{name}/resolve/{rest:path}", methods=["GET", "HEAD"], include_in_schema=False)
def without_owner(visitor: Asks, name: str) -> None:
    """Models of this hub have owners."""
    raise NoRepository("no such repository", got=name[:200], expected="owner/name")


def _tags(header: str) -> set[str]:
    return {tag.strip().removeprefix("W/") for tag in header.split(",")}
