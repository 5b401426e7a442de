"""Addresses on a hub: https://host[:port][/prefix]/owner/name[@revision]."""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import quote, unquote, urlsplit

from ...errors import AddressError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")


class HubAddress(NamedTuple):
    """A repository on a hub, or a revision of it."""

    hub: str
    owner: str
    name: str
    rev: str | None = None

    @property
    def url(self) -> str:
        """The repository's, without the revision."""
        return f"{self.hub}/{self.owner}/{self.name}"

    @property
    def path(self) -> str:
        """Where the hub's API has it."""
        return f"/api/v1/repositories/{self.owner}/{self.name}"


def parse(address: str) -> HubAddress:
    """Take an address apart.

    Raises:
        AddressError: it is none; a name or a key in it is not repeated.

    >>> parse("https://hub.example.org/ann/tiny@main~2")
    HubAddress(hub='https://hub.example.org', owner='ann', name='tiny', rev='main~2')
    """
    try:
        parts = urlsplit(address.partition("://")[0] + "://" + address.partition("://")[2].partition("#")[0])
        _ = parts.port
    except ValueError:
        parts = urlsplit("")
    if "@" in parts.netloc:
        raise AddressError("there is a name or a key in the address", hint="say who you are: cofuse login URL")
    path, at, rev = parts.path.partition("@")
    names = path.strip("/").split("/")
    good = len(names) >= 2 and all(_NAME.fullmatch(name) for name in names) and not parts.query
    if not good or parts.scheme not in ("https", "http") or not parts.hostname or "#" in address or (at and not rev):
        raise AddressError(
            "not an address on a hub", got=ascii(address[:200]), expected="https://host/owner/name or .../name@revision"
        )
    hub = "/".join([f"{parts.scheme}://{parts.netloc}", *names[:-2]])
    return HubAddress(hub, names[-2], names[-1], unquote(rev) or None)


def quoted(text: str) -> str:
    """A part of a path of a request."""
    return quote(text, safe="")
