"""What a request's path says after the repository: a revision, in which a slash may be written %2F, and a file's path."""

from __future__ import annotations

from urllib.parse import quote, unquote

from fastapi import Request

from ..faults import Invalid
from ..hub import Hub


def rest_of(request: Request, skip: int) -> list[str]:
    """The parts of a request's path after the first `skip`, each decoded by itself.

    Frameworks decode the whole path, after which `runs%2Fa/x` and `runs/a%2Fx` are one.

    Raises:
        Invalid: it is not UTF-8, or one of the first has a slash in it: then they are not as many as the route took.
    """
    raw: bytes = request.scope.get("raw_path") or quote(request.scope["path"]).encode()
    try:
        parts = [unquote(part, errors="strict") for part in raw.partition(b"?")[0].decode("ascii").split("/")[1:]]
    except UnicodeDecodeError:
        raise Invalid("the path is not UTF-8", expected="percent-encoded UTF-8") from None
    if any("/" in part for part in parts[:skip]):
        raise Invalid("a slash in a name", expected="owner/name, the slash as it is")
    return parts[skip:]


def revision_and_path(request: Request, skip: int) -> tuple[str, str]:
    """The revision, and the path in it, that a request's path ends with.

    Raises:
        Invalid: it is not UTF-8.
    """
    parts = rest_of(request, skip)
    # People write refs/pr/3 as it is.
    first = 3 if parts[:1] == ["refs"] and len(parts) >= 3 else 1
    return "/".join(parts[:first]), "/".join(parts[first:])


def url_of(hub: Hub, request: Request) -> str:
    """How others reach the hub, without a slash at its end: as it was told, else as this request has reached it."""
    where = hub.settings.server
    if where.url and where.url != f"{'https' if where.certificate else 'http'}://{where.host}:{where.port}":
        return where.url.rstrip("/")
    # What it listens on may be 0.0.0.0, which nobody can send to.
    base, said = request.base_url, request.headers.get("x-forwarded-proto")
    if where.proxies and said in ("http", "https"):
        base = base.replace(scheme=said)
    return str(base).rstrip("/")
