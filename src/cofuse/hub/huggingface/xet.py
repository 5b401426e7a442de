"""Uploads of clients with hf_xet, which know no other way: xorbs come, then shards, and files are put together at once.

Nothing is kept as xorbs: a store has its own chunks. Each upload is told a URL of its own, because clients remember, by URL,
what they need not send again, longer than it is kept here.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import secrets
import shutil
import time
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse

from ...store.places import explained
from .. import uploads
from ..access.roles import Role
from ..api.depends import Contributes, TheHub, secret_of
from ..api.streams import receive
from ..arriving import arriving
from ..faults import Full, Invalid, Refused
from ..hub import Hub
from ..quotas import check_room
from ..repositories import Seen
from .addresses import url_of
from .committing import stored
from .reading import MODEL
from .xorbs import MAX_SHARD, MAX_XORB, Made, Xorb, read_shard

router = APIRouter(tags=["hugging face"])
CAS = "/xet/{session}/{owner}/{name}/v1"
_LASTS = 3600.0  # seconds after which a client asks for its token again
_OPEN = 64  # xorbs whose chunks' places are remembered while a shard is read
_BLOCK = 1024 * 1024
_HASH = re.compile(r"[0-9a-f]{64}")


@router.get(MODEL + "/xet-write-token/{rest:path}")
async def token(hub: TheHub, seen: Contributes, request: Request) -> JSONResponse:
    """Where to send xorbs and shards, and with what: the token that the request itself brought."""
    ends = int(time.time() + _LASTS)
    where = f"{url_of(hub, request)}/xet/{secrets.token_hex(8)}/{seen.repository.full_name}"
    secret = secret_of(request) or ""
    said: dict[str, Any] = {"casUrl": where, "exp": ends, "accessToken": secret}
    headers = {"X-Xet-Cas-Url": where, "X-Xet-Token-Expiration": str(ends), "X-Xet-Access-Token": secret}
    return JSONResponse(said, headers={**headers, "Cache-Control": "no-store"})


@router.post(CAS + "/xorbs/{prefix}/{xorb}")
async def take_xorb(hub: TheHub, seen: Contributes, xorb: str, request: Request) -> dict[str, bool]:
    """Take a xorb."""
    place = _place(hub, seen, xorb)
    if await run_in_threadpool(_touched, place):
        await receive(request, MAX_XORB, lambda _: None)
        return {"was_inserted": False}
    await run_in_threadpool(_make_room, hub, seen, int(request.headers.get("content-length", MAX_XORB)))
    temporary = place.with_suffix(f".{secrets.token_hex(4)}")
    try:
        with explained("a xorb"):
            with await run_in_threadpool(open, temporary, "xb") as file:
                await receive(request, MAX_XORB, file.writelines)
            await run_in_threadpool(os.replace, temporary, place)
    finally:
        temporary.unlink(missing_ok=True)
    return {"was_inserted": True}


@router.post(CAS + "/shards")
async def take_shard(hub: TheHub, seen: Contributes, request: Request) -> dict[str, int]:
    """Take a shard: its files are here when this is answered, on the disk, with a SHA-256 that was computed here."""
    body = io.BytesIO()
    await receive(request, MAX_SHARD, body.writelines)
    await run_in_threadpool(_make, hub, seen, body.getvalue())
    return {"result": 1}


def _make(hub: Hub, seen: Seen, shard: bytes) -> None:
    opened: OrderedDict[str, Xorb] = OrderedDict()
    there = stored(hub.store(seen.repository))
    for made in read_shard(shard):
        # Clients send first, and ask afterwards whether anything has changed.
        had = made.sha256 is not None and (
            made.sha256 in there or uploads.blob(hub, seen.repository.id, made.sha256) is not None
        )
        if not had:
            _make_file(hub, seen, made, opened)


def _make_file(hub: Hub, seen: Seen, made: Made, opened: OrderedDict[str, Xorb]) -> None:
    with hub.database.writing() as transaction:
        upload = uploads.begin(hub, transaction, seen, made.size, made.sha256)
    try:
        with arriving(hub.uploads / upload.key) as file:
            for block in _blocks(hub, seen, made, opened):
                file.append(block)
            uploads.settle(hub, upload, file)
    except BaseException:
        with hub.database.writing() as transaction:
            uploads.discard(hub, transaction, upload.key)
        raise


def _blocks(hub: Hub, seen: Seen, made: Made, opened: OrderedDict[str, Xorb]) -> Iterator[list[bytes]]:
    block, size = [], 0
    for part in made.parts:
        if part.xorb not in opened:
            place = _place(hub, seen, part.xorb)
            if not place.is_file():
                raise Refused("a xorb is missing", got=part.xorb, hint="upload again")
            opened[part.xorb] = Xorb(place)
            while len(opened) > _OPEN:
                opened.popitem(last=False)
        for chunk in opened[part.xorb].read(part):
            block.append(chunk)
            size += len(chunk)
            if size >= _BLOCK:
                yield block
                block, size = [], 0
    yield block


def _place(hub: Hub, seen: Seen, xorb: str) -> Path:
    """Where a xorb of an account and a repository is, which nobody else finds; what is left there, uploads sweep."""
    if not _HASH.fullmatch(xorb):
        raise Invalid("not a xorb's hash", got=ascii(xorb[:80]))
    key = hashlib.sha256(f"{seen.repository.key} {xorb}".encode()).hexdigest()
    return hub.uploads / f"xet-{seen.visitor.known()}-{key}"


def _touched(place: Path) -> bool:
    """Whether a xorb is there; then it is young again, and is not swept while its file is made."""
    with contextlib.suppress(FileNotFoundError):
        os.utime(place)
        return True
    return False


def _make_room(hub: Hub, seen: Seen, size: int) -> None:
    """Refuse bytes for which there is no room, on the disk or in the quota, or of which this account has too many here."""
    seen.must(Role.CONTRIBUTE)
    waiting = 0
    for path in hub.uploads.glob(f"xet-{seen.visitor.known()}-*"):
        try:
            waiting += path.stat().st_size
        except OSError:
            continue  # swept meanwhile
    if waiting + size > hub.settings.limits.account:
        raise Full("too much is unfinished", got=f"{waiting} bytes", expected=f"at most {hub.settings.limits.account}")
    if shutil.disk_usage(hub.uploads).free < size + uploads.SPARE:
        raise Full("the hub's disk is full", got=f"{size} bytes", hint="its operator has to make room")
    with hub.database.reading() as transaction:
        check_room(transaction, hub.settings.limits, seen.repository, size)
