"""Verbs of a hub's operator: serve, token, account."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..document import parse_document, read_document
from ..errors import HubError
from .keys import account
from .login import PLAIN

if TYPE_CHECKING:
    from ..hub.settings import Settings

Data = Annotated[Path | None, typer.Option("--data", help="The hub's folder; ./hub by default.")]
File = Annotated[Path | None, typer.Option("--settings", help="A YAML file; see docs/hub.md.")]
# COFUSE_HUB_SERVER__PORT=80 is server.port: 80.
PREFIX = "COFUSE_HUB_"

token = typer.Typer(help="Tokens of a hub on this machine.", no_args_is_help=True, rich_markup_mode=None)


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.command("serve")(serve)
    token.command("create")(create)
    app.add_typer(token, name="token")


def serve(
    data: Data = None,
    port: Annotated[
        int | None, typer.Option("--port", min=0, max=65535, help="8080 by default; 0: a free one.")
    ] = None,
    host: Annotated[str | None, typer.Option("--host", help="127.0.0.1 by default: this machine alone.")] = None,
    workers: Annotated[int | None, typer.Option("--workers", min=0, help="Processes that work; 1 by default.")] = None,
    file: File = None,
) -> None:
    """Run a hub: people offer what they changed, and it is screened, fused, judged and released."""
    given = {"server.port": port, "server.host": host, "server.workers": workers}
    settings = opened_settings(file, data, {key: value for key, value in given.items() if value is not None})
    from ..hub.serving import serve as listen

    def ready(url: str) -> None:
        print(f"hub: {url}\n  in {settings.data.absolute()}", flush=True)

    listen(settings, ready=ready)


def create(
    name: Annotated[str, typer.Option("--name", help="Of the account; made if there is none.")],
    role: Annotated[str, typer.Option("--role", help="read, contribute, maintain or admin.")] = "contribute",
    days: Annotated[
        float | None, typer.Option("--days", min=0, help="That it is good for; for ever by default.")
    ] = None,
    label: Annotated[str, typer.Option("--label", help="What it is for.")] = "made on the machine",
    data: Data = None,
    file: File = None,
) -> None:
    """Make a token, and print it alone on the last line: it is not to be had again."""
    settings = opened_settings(file, data, {})
    from ..hub.access.audit import note
    from ..hub.access.tokens import find_account, make_account, make_token, role_named
    from ..hub.hub import Hub

    scope = role_named(role)
    hub = Hub(settings)
    try:
        hub.database.migrate()
        with hub.database.writing() as transaction:
            account = find_account(transaction, name) or make_account(transaction, name, scope)
            if scope.word != account.role and days is None and scope > role_named(account.role):
                account.role = scope.word
            _, secret = make_token(transaction, account, scope, label=label, days=days)
            note(transaction, None, "token.create", name, scope=scope.word, by="the command line")
    finally:
        hub.close()
    print(secret)


def opened_settings(file: Path | None, data: Path | None, given: dict[str, Any]) -> Settings:
    """The settings: from the file, then the environment, then the options; the later wins."""
    try:
        from ..hub.settings import Settings
    except ImportError as error:
        raise HubError("the hub is not installed", got=error, hint='pip install "cofuse[hub]"') from None

    from ..document import read_value

    changes: dict[str, Any] = {
        key.removeprefix(PREFIX).lower().replace("__", "."): read_value(value)
        for key, value in sorted(os.environ.items())
        if key.startswith(PREFIX) and key != PLAIN
    }
    changes |= given
    if data is not None:
        changes["data"] = str(data)
    if file is None:
        settings = parse_document("{}", Settings, where="the hub's settings", changes=changes)
    else:
        settings = read_document(file, Settings, changes)
    if settings.storage.url is None:
        return settings
    known = asdict(account(settings.storage.endpoint, settings.storage.region))
    new = {name: value for name, value in known.items() if not getattr(settings.storage, name)}
    return settings.model_copy(update={"storage": settings.storage.model_copy(update=new)})
