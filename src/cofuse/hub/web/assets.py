"""Files that pages bring along, served from the package. A name has the hash of what is in it, so that it can be kept for ever."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.resources import files

from fastapi import APIRouter
from starlette.responses import Response

from ..faults import NoFile

router = APIRouter(include_in_schema=False)
# The palette, the tables and the pictures of reports are those of the pages.
_STYLES = ("report/page.css", "report/gate.css", "hub/web/static/hub.css")


@cache
def assets() -> dict[str, tuple[str, bytes]]:
    """What there is: the media type and the bytes, by the name that has their hash."""
    root = files("cofuse")
    style = "\n".join((root / name).read_text(encoding="utf-8") for name in _STYLES).encode()
    mark = (root / "hub/web/static/mark.svg").read_bytes()
    return {
        f"hub.{_hash(style)}.css": ("text/css; charset=utf-8", style),
        f"mark.{_hash(mark)}.svg": ("image/svg+xml", mark),
    }


def asset(kind: str) -> str:
    """The path of the asset of a kind (`css`, `svg`)."""
    return "/static/" + next(name for name in assets() if name.endswith(kind))


@router.get("/static/{name}")
async def static(name: str) -> Response:
    """A file."""
    found = assets().get(name)
    if found is None:
        raise NoFile("no such file")
    kind, data = found
    return Response(data, media_type=kind, headers={"Cache-Control": "public, max-age=31536000, immutable"})


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
