"""Large files, as Git LFS uploads them: asked for by hash, sent to a URL that is all there is to show, then checked.

A file goes in one request, or in parts that follow one another where the client can do that: then a connection that breaks
costs a part.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from .. import uploads
from ..api.depends import Contributes, TheHub
from ..api.streams import Cut, receive
from ..arriving import arriving
from ..database import Upload
from ..faults import Conflict, Fault, Invalid, Refused, Unknown
from ..hub import Hub
from ..repositories import Seen
from .addresses import url_of
from .committing import stored

router = APIRouter(tags=["hugging face"])
PART = 256 * 1024 * 1024  # bytes
_TYPE = "application/vnd.git-lfs+json"


class Loose(BaseModel):
    """What clients send, of which not all is read."""

    model_config = ConfigDict(extra="ignore", strict=True)


class Wanted(Loose):
    """A file by its hash."""

    oid: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    size: Annotated[int, Field(ge=0, lt=1 << 63)]


class Batch(Loose):
    """Files that are about to be sent."""

    operation: str
    objects: Annotated[list[Wanted], Field(max_length=1000)]
    transfers: list[str] = ["basic"]
    hash_algo: str = "sha256"


class Parts(Loose):
    """Parts that have been sent."""

    oid: str


@router.post("/{owner}/{name}.git/info/lfs/objects/batch")
def batch(hub: TheHub, seen: Contributes, wanted: Batch, request: Request) -> JSONResponse:
    """Where to send files; those that are here already need no sending."""
    if wanted.operation != "upload" or wanted.hash_algo != "sha256":
        raise Invalid("only uploads by SHA-256 are known here", got=ascii(wanted.operation)[:40])
    parts = "multipart" in wanted.transfers
    url, there = url_of(hub, request), stored(hub.store(seen.repository))
    objects = [_offered(hub, seen, one, url, parts, there=one.oid in there) for one in wanted.objects]
    chosen = "multipart" if parts else "basic"
    return JSONResponse({"transfer": chosen, "objects": objects, "hash_algo": "sha256"}, media_type=_TYPE)


def _offered(hub: Hub, seen: Seen, wanted: Wanted, url: str, parts: bool, *, there: bool) -> dict[str, Any]:
    said: dict[str, Any] = {"oid": wanted.oid, "size": wanted.size, "authenticated": True}
    if there or uploads.blob(hub, seen.repository.id, wanted.oid) is not None:
        return said
    try:
        with hub.database.writing() as transaction:
            key = uploads.begin(hub, transaction, seen, wanted.size, wanted.oid).key
    except Fault as fault:
        return said | {"error": {"code": fault.status, "message": fault.line}}
    send: dict[str, Any] = {"href": f"{url}/api/v1/uploads/{key}"}
    if parts and wanted.size > PART:
        count = -(-wanted.size // PART)
        header = {str(n): f"{url}/lfs/{key}/{n}" for n in range(1, count + 1)}
        send = {"href": f"{url}/lfs/{key}", "header": {"chunk_size": str(PART), **header}}
    return said | {"actions": {"upload": send, "verify": {"href": f"{url}/lfs/{key}/verify"}}}


@router.put("/lfs/{key}/{part}", response_class=Response)
async def send_part(hub: TheHub, key: str, part: int, request: Request) -> Response:
    """Send a part. Who has the key needs no token; nothing is kept of one that is cut short, or comes before its turn."""
    found = await run_in_threadpool(_find, hub, key)
    start = (part - 1) * PART
    if not 1 <= part <= max(1, -(-found.size // PART)):
        raise Invalid("no such part", got=part)
    size = min(PART, found.size - start)
    tag = {"ETag": f'"{key}-{part}"'}
    with ExitStack() as stack:
        file = await run_in_threadpool(stack.enter_context, arriving(hub.uploads / key))
        found = await run_in_threadpool(_find, hub, key)  # while it was waited for, it may be done, and others'
        if file.size >= start + size or found.done:
            return Response(headers=tag)  # the answer to an earlier request got lost
        if file.size < start:
            raise Conflict("parts follow one another", got=f"part {part}", expected=f"part {file.size // PART + 1}")
        file.cut(start)
        try:
            await receive(request, size, file.append)
            if file.size < start + size:
                raise Cut("bytes are missing", got=file.size - start, expected=size)
        except BaseException:
            file.cut(start)
            raise
        await run_in_threadpool(uploads.settle, hub, found, file)
    return Response(headers=tag)


@router.post("/lfs/{key}")
def complete(hub: TheHub, key: str, said: Parts) -> dict[str, Any]:
    """Say that all parts have been sent."""
    return _verified(hub, key, said.oid, None)


@router.post("/lfs/{key}/verify")
def verify(hub: TheHub, key: str, said: Wanted) -> dict[str, Any]:
    """Ask whether a file is here whole."""
    return _verified(hub, key, said.oid, said.size)


def _verified(hub: Hub, key: str, oid: str, size: int | None) -> dict[str, Any]:
    found = _find(hub, key)
    if not found.done:
        raise Conflict("bytes are missing", got=uploads.offset(hub, found), expected=found.size)
    if found.sha256 != oid or size not in (None, found.size):
        raise Refused("this is another file", got=ascii(oid[:80]), expected=found.sha256)
    return {"oid": found.sha256, "size": found.size}


def _find(hub: Hub, key: str) -> Upload:
    with hub.database.reading() as transaction:
        try:
            return uploads.find(transaction, None, key)
        except Unknown:
            raise Unknown("no such upload", hint="it may have expired, or been committed; begin another") from None
