"""Verbs of who one is on hubs: login, logout; and what the environment says of that."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from ..credentials import Credentials, Machine, machine, use
from ..errors import HubError
from .caches import cache_folder

PLAIN = "COFUSE_HUB_PLAIN"

Url = Annotated[str, typer.Argument(metavar="URL", help="The hub's: https://host.")]


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.command("login")(login)
    app.command("logout")(logout)


def login(url: Url) -> None:
    """Keep a token for a hub, in a file that only you can read; it is asked for, or read from standard input."""
    from ..store.remotes.http import Http, check_url

    hub = check_url(url, plain=machine().plain)
    token = (typer.prompt("token", hide_input=True) if sys.stdin.isatty() else sys.stdin.readline()).strip()
    if not token:
        raise HubError("no token", expected="one on standard input", hint="a hub's page, or its operator, makes one")
    found = Http(hub, token, plain=machine().plain, patience=10.0).json("GET", "/api/v1/me")
    if not isinstance(found, dict) or not {"name", "scope"} <= found.keys():
        raise HubError("the hub does not say who you are", where=hub, hint="is this a Cofuse hub?")
    Credentials(machine().credentials).set(hub, token)
    print(f"{hub}: {ascii(found['name'])[1:-1]}, may {ascii(found['scope'])[1:-1]}\n  in {machine().credentials}")


def logout(url: Url) -> None:
    """Forget the token for a hub; the hub still takes it until it is revoked there."""
    known = Credentials(machine().credentials)
    print(f"forgotten: {url}" if known.remove(url) else f"there was none for {url}")


def read_environment() -> None:
    """Tell the rest of the program what the environment says of hubs."""
    env = os.environ.get
    given = env("XDG_CONFIG_HOME", "")
    # A relative path is to be ignored, as the XDG base directory specification says.
    config = Path(given) if os.path.isabs(given) else Path(os.path.expanduser("~")) / ".config"
    use(
        Machine(
            credentials=config / "cofuse" / "credentials",
            cache=cache_folder(),
            token=env("COFUSE_TOKEN", "").strip() or None,
            plain=env(PLAIN, "").lower() in ("1", "true"),
        )
    )
