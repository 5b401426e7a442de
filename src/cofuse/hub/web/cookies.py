"""Cookies of the pages: how they are named, set and taken back."""

from __future__ import annotations

from fastapi import Request
from starlette.responses import Response

from ..api.depends import the_hub


def is_https(request: Request) -> bool:
    """Whether the browser speaks to the hub, or to its proxy, over TLS."""
    server = the_hub(request).settings.server
    forwarded = request.headers.get("x-forwarded-proto") if server.proxies else None
    return (forwarded or request.url.scheme) == "https" or (server.url or "").startswith("https:")


def cookie_name(request: Request, what: str = "") -> str:
    """Over TLS, one that browsers take from this host alone, for the whole of it, and send over TLS alone."""
    return ("__Host-cofuse" if is_https(request) else "cofuse") + what


def set_cookie(request: Request, answer: Response, name: str, value: str, seconds: int) -> None:
    """Hand a secret out: no script reads it, and no other site's form sends it."""
    answer.set_cookie(name, value, seconds, path="/", secure=is_https(request), httponly=True, samesite="lax")


def forget(request: Request, answer: Response, name: str) -> None:
    """Take a cookie back."""
    answer.delete_cookie(name, path="/", secure=is_https(request), httponly=True, samesite="lax")
