"""What the verbs of somebody on a hub share: the repository's address, who talks to it, and what somebody else has written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import DocumentError
from ..store.remotes.addresses import HubAddress, parse

if TYPE_CHECKING:
    from ..hub.client import HubClient

Address = Annotated[str, typer.Argument(metavar="ADDRESS", help="https://hub/owner/name")]


def repository(address: str) -> HubAddress:
    """The repository of an address.

    Raises:
        DocumentError: it names a version of it.
    """
    where = parse(address)
    if where.rev is not None:
        raise DocumentError("the address of a model is wanted", got=address, hint="without @REV")
    return where


def on_hub(address: str) -> HubClient:
    """The repository of an address, in the name of whoever has logged in; to be closed."""
    from ..hub.client import HubClient

    return HubClient.at(repository(address))


def plain(text: object) -> str:
    """What somebody else has written, fit for a terminal."""
    return "".join(c if c.isprintable() else " " for c in str(text))
