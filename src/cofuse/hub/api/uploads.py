"""Uploads: begin, ask how far it is, send what is missing, send the whole, forget."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request
from fastapi.concurrency import contextmanager_in_threadpool
from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from .. import uploads
from ..arriving import Arriving, arriving
from ..database import Upload
from ..faults import Conflict
from ..hub import Hub
from .depends import Asks, Contributes, TheHub, address_of
from .streams import Cut, receive
from .values import Body, Hash

router = APIRouter(tags=["uploads"])

WAIT = 10.0  # seconds that who comes back waits for what is left of an earlier connection


class NewUpload(Body):
    """An upload to be begun."""

    size: Annotated[int, Field(ge=0, lt=1 << 63)]
    sha256: Hash | None = None


@router.post("/repositories/{owner}/{name}/uploads", status_code=201)
def begin(hub: TheHub, seen: Contributes, wanted: NewUpload) -> dict[str, Any]:
    """Begin one; `PATCH` sends its bytes, in as many requests as it takes."""
    with hub.database.writing() as transaction:
        made = uploads.begin(hub, transaction, seen, wanted.size, wanted.sha256)
    return said(made, 0)


@router.head("/uploads/{key}", include_in_schema=False)
@router.get("/uploads/{key}")
def ask(hub: TheHub, visitor: Asks, key: str) -> Response:
    """How many bytes have arrived."""
    found = _find(hub, visitor.known(), key)
    return answered(found, uploads.offset(hub, found))


@router.patch("/uploads/{key}")
async def send(
    hub: TheHub, visitor: Asks, key: str, request: Request, upload_offset: Annotated[int, Header(ge=0, lt=1 << 63)]
) -> Response:
    """Append the body at Upload-Offset, which is where the upload is; it is on the disk when this is answered.

    What has arrived of a request that is cut short is kept.
    """
    found = await run_in_threadpool(_find, hub, visitor.known(), key)
    if found.done and upload_offset == found.size:
        return answered(found, found.size)  # the answer to the last request got lost
    async with _opened(hub, found) as file:
        found = await run_in_threadpool(_find, hub, visitor.known(), key)  # while it was waited for, it may be done
        before = file.size
        if before != upload_offset:
            raise Conflict(
                "the upload is elsewhere", got=f"Upload-Offset: {upload_offset}", expected=f"Upload-Offset: {before}"
            )
        try:
            await receive(request, found.size - before, file.append)
        except Cut:
            await run_in_threadpool(uploads.settle, hub, found, file)
            raise
        except BaseException:
            await run_in_threadpool(file.cut, before)
            raise
        return answered(await run_in_threadpool(uploads.settle, hub, found, file), file.size)


@router.put("/uploads/{key}")
async def send_all(hub: TheHub, key: str, request: Request) -> Response:
    """Send all of it in one request. Who has the key needs no token, as clients of Git LFS send none.

    Nothing is kept of a request that is cut short.
    """
    hub.requests.must(address_of(request))
    found = await run_in_threadpool(_find, hub, None, key)
    if found.done:
        return answered(found, found.size)
    async with _opened(hub, found) as file:
        # While it was waited for, it may be done: then its bytes are others' too, and are not touched.
        found = await run_in_threadpool(_find, hub, None, key)
        if found.done:
            return answered(found, found.size)
        await run_in_threadpool(file.cut, 0)
        try:
            await receive(request, found.size, file.append)
            if file.size < found.size:
                raise Cut("bytes are missing", got=file.size, expected=found.size)
        except BaseException:
            await run_in_threadpool(file.cut, 0)
            raise
        return answered(await run_in_threadpool(uploads.settle, hub, found, file), file.size)


@router.delete("/uploads/{key}", status_code=204)
def forget(hub: TheHub, visitor: Asks, key: str) -> None:
    """Forget it."""
    with hub.database.writing() as transaction:
        uploads.find(transaction, visitor.known(), key)
        uploads.discard(hub, transaction, key)


def said(upload: Upload, offset: int) -> dict[str, Any]:
    """An upload as JSON."""
    return {
        "key": upload.key,
        "size": upload.size,
        "sha256": upload.sha256,
        "offset": offset,
        "done": upload.done,
        "expires": upload.expires,
    }


def answered(upload: Upload, offset: int) -> Response:
    """How far it is, as an answer."""
    return JSONResponse(said(upload, offset), headers={"Upload-Offset": str(offset), "Cache-Control": "no-store"})


def _find(hub: Hub, account: int | None, key: str) -> Upload:
    with hub.database.reading() as transaction:
        return uploads.find(transaction, account, key)


@asynccontextmanager
async def _opened(hub: Hub, upload: Upload) -> AsyncIterator[Arriving]:
    """Its file, this request's alone; what is left of an earlier connection is waited for."""
    give_up = time.monotonic() + WAIT
    while True:
        opening = contextmanager_in_threadpool(arriving(hub.uploads / upload.key))
        try:
            file = await opening.__aenter__()
            break
        except Conflict:
            if time.monotonic() > give_up:
                raise
        await asyncio.sleep(0.05)
    async with AsyncExitStack() as stack:
        stack.push_async_exit(opening)
        yield file
