"""A repository's store, for other stores: what is there, objects both ways, refs moved. See docs/formats/hub.md."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.concurrency import contextmanager_in_threadpool
from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import FileResponse, Response

from ...errors import CorruptError, RefError
from ...store.commits import load_commit
from ...store.places import FORMAT
from ...store.refs import HEADS, TAGS
from ...store.writing import writing
from ..access.audit import note
from ..delivering import BATCH, batch, check_id, deliver_upload
from ..faults import Conflict, Invalid, NoRevision, Refused, Unknown
from ..hub import Hub
from ..repositories import Seen
from .depends import Contributes, Maintains, Reads, TheHub
from .streams import receive
from .values import Body, Hash

router = APIRouter(prefix="/repositories/{owner}/{name}/store", tags=["store"])

Ref = Annotated[str, Field(max_length=1200)]


class Asked(Body):
    """Objects that are asked for."""

    ids: Annotated[list[Hash], Field(max_length=10_000)]


class Sent(Body):
    """The upload that an object has come in."""

    upload: Annotated[str, Field(max_length=64)]


class Move(Body):
    """A move of a ref: to a commit, from another or from nowhere."""

    ref: Ref
    new: Hash
    expect: Hash | None


class Moves(Body):
    """Moves, done one after another."""

    moves: Annotated[list[Move], Field(max_length=1000)]


class NewHead(Body):
    """The branch that HEAD shall name."""

    ref: Ref


class ObjectFile(FileResponse):
    """An object's file; ranges are read in pieces that are worth a thread's while."""

    chunk_size = 1024 * 1024
    media_type = "application/octet-stream"  # for the API's description


@router.get("")
def read(hub: TheHub, seen: Reads) -> dict[str, Any]:
    """Its format, the branch that HEAD names, and all branches and tags."""
    refs = hub.store(seen.repository).refs
    with _as_conflict("refs"):
        found = {under + name: commit for under in (HEADS, TAGS) for name, commit in refs.all(under).items()}
        return {"format": FORMAT.decode().strip(), "head": refs.head(), "refs": found}


@router.get("/revision")
def revision(hub: TheHub, seen: Reads, rev: Annotated[str, Field(max_length=1200)] = "HEAD") -> dict[str, str]:
    """The commit that a revision names, and its tree."""
    store = hub.store(seen.repository)
    try:
        found = store.load_commit(rev)
    except RefError as error:
        raise NoRevision(error.what, where=seen.repository.full_name, got=error.got, hint=error.hint) from None
    return {"commit": found.id, "tree": found.tree}


@router.post("/has")
def has(hub: TheHub, seen: Reads, asked: Asked) -> dict[str, list[str]]:
    """Which of these objects are there."""
    objects = hub.store(seen.repository).objects
    return {"ids": [object_id for object_id in asked.ids if object_id in objects]}


@router.get("/objects/{object_id}", response_class=ObjectFile)
def get_object(hub: TheHub, seen: Reads, object_id: str) -> Response:
    """An object's file, or a range of it."""
    path = hub.store(seen.repository).objects.path(check_id(object_id))
    try:
        status = path.stat()
    except FileNotFoundError:
        raise Unknown("no such object", where=seen.repository.full_name, got=object_id) from None
    return ObjectFile(path, media_type="application/octet-stream", stat_result=status)


@router.post("/objects")
async def put_objects(hub: TheHub, seen: Contributes, request: Request) -> dict[str, int]:
    """Keep objects, each after what it needs: id (32 bytes), size (8, little-endian), file; again and again."""
    async with contextmanager_in_threadpool(batch(hub, seen)) as taking:
        await receive(request, BATCH, taking.take)
        return await run_in_threadpool(taking.keep)


@router.post("/objects/{object_id}")
def put_upload(hub: TheHub, seen: Contributes, object_id: str, sent: Sent) -> dict[str, int]:
    """Keep an object that has come as an upload."""
    return deliver_upload(hub, seen, object_id, sent.upload)


@router.post("/refs")
def move(hub: TheHub, seen: Maintains, wanted: Moves) -> dict[str, int]:
    """Move branches, and make tags, by compare-and-swap; the first that is not where it should be ends it."""
    store = hub.store(seen.repository)
    for one in wanted.moves:
        if not one.ref.startswith((HEADS, TAGS)):
            raise Invalid("only branches and tags can be moved", got=ascii(one.ref[:80]))
        if one.ref.startswith(TAGS) and one.expect not in (None, one.new):
            raise Conflict("tags do not move", where=one.ref, got=one.expect)
        with _as_conflict(one.ref), writing(store.objects, 1) as pen:
            _commit(hub, seen, one.new)
            pen.rely_on(one.new)
            first = one.ref.startswith(HEADS) and not store.branches()
            store.refs.update(one.ref, one.new, expect=one.expect)
            if first:
                store.refs.point_head(one.ref)
        hub.files.warm(store, one.new)
        with hub.database.writing() as transaction:
            note(
                transaction,
                seen.visitor,
                "ref.move",
                one.ref,
                repository=seen.repository.id,
                new=one.new,
                old=one.expect,
            )
    return {"moved": len(wanted.moves)}


@router.put("/head")
def point(hub: TheHub, seen: Maintains, wanted: NewHead) -> dict[str, str]:
    """Make HEAD name another branch."""
    with _as_conflict(wanted.ref):
        hub.store(seen.repository).refs.point_head(wanted.ref)
    with hub.database.writing() as transaction:
        note(transaction, seen.visitor, "head.move", wanted.ref, repository=seen.repository.id)
    return {"head": wanted.ref}


def _commit(hub: Hub, seen: Seen, commit_id: str) -> None:
    try:
        load_commit(hub.store(seen.repository).objects, commit_id)
    except CorruptError as error:
        raise Refused("no such commit", got=commit_id, expected=error.what, hint="send it before its ref") from None


@contextmanager
def _as_conflict(ref: str) -> Iterator[None]:
    try:
        yield
    except RefError as error:
        # Where it is on the hub's disk is nobody's business.
        raise Conflict(error.what, where=ref, got=error.got, expected=error.expected, hint=error.hint) from None
