"""Long bodies, taken as they come: in blocks, while the one before is written and hashed; never more than a few in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import ClassVar

from fastapi import Request
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from ..faults import Fault, TooLarge

BLOCK = 1024 * 1024  # bytes
PIECES = 256  # or so many pieces, if they are small
SILENCE = 60.0  # seconds after which a connection that sends nothing is given up


class Cut(Fault):
    """The body ended before its time: the connection was cut, or nothing came any more."""

    status: ClassVar[int] = 408


async def blocks(request: Request, most: int) -> AsyncIterator[list[bytes]]:
    """The body in pieces of about a block.

    Args:
        request: whose.
        most: bytes that it may have.

    Raises:
        Cut: it has not come whole.
        TooLarge: it has more.
    """
    said = int(request.headers["content-length"]) if "content-length" in request.headers else None
    if said is not None and said > most:
        raise TooLarge("the body is too large", got=f"{said} bytes", expected=f"at most {most}")
    taken, size, block = 0, 0, list[bytes]()
    stream = request.stream()
    try:
        async with asyncio.timeout(SILENCE) as patience:
            async for chunk in stream:
                patience.reschedule(asyncio.get_running_loop().time() + SILENCE)
                taken, size = taken + len(chunk), size + len(chunk)
                if taken > most:
                    raise TooLarge("the body is too large", got=f"{taken} bytes or more", expected=f"at most {most}")
                block.append(chunk)
                if size >= BLOCK or len(block) >= PIECES:
                    yield block
                    size, block = 0, []
    except (ClientDisconnect, TimeoutError):
        if block:
            yield block
        raise Cut("the body was cut short", got=f"{taken} bytes", hint="go on from where it is") from None
    if block:
        yield block
    if said is not None and taken < said:
        raise Cut("the body was cut short", got=f"{taken} bytes", expected=said, hint="go on from where it is")


async def receive(request: Request, most: int, take: Callable[[list[bytes]], None]) -> None:
    """Hand the body on, block by block, to a function that blocks; the next one is received meanwhile.

    Raises:
        Cut, TooLarge: see `blocks`. What came before has been handed on.
    """
    taking: asyncio.Future[None] | None = None
    try:
        async for block in blocks(request, most):
            if taking is not None:
                await taking
            taking = asyncio.ensure_future(run_in_threadpool(take, block))
    finally:
        if taking is not None:
            await taking
