"""The command line: one verb a job, the same addresses everywhere, exit status 0 only when what was asked is done."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Annotated

import typer

from .. import __version__
from ..errors import CofuseError, Interrupted
from .login import read_environment

# Which module has which verbs, in the order of the help: a command imports its own module alone.
VERBS: dict[str, tuple[str, ...]] = {
    "weights": ("fuse", "body", "show"),
    "methods": ("methods",),
    "replay": ("replay",),
    "finetune": ("finetune",),
    "lora": ("extract-lora",),
    "patches": ("apply",),
    "history": ("init", "commit", "log", "status", "branch", "tag", "checkout"),
    "merging": ("merge", "cherry-pick", "revert"),
    "differences": ("diff", "blame"),
    "upkeep": ("gc", "fsck"),
    "git": ("git",),
    "remotes": ("clone", "push", "pull", "fetch", "remote"),
    "login": ("login", "logout"),
    "contribute": ("contribute", "contributions"),
    "rounds": ("releases", "revoke", "rollback", "work", "round", "policy"),
    "statistics": ("fisher", "gram"),
    "evolution": ("evolve", "report"),
    "evaluation": ("eval",),
    "gate": ("gate",),
    "ranking": ("rank",),
    "choosing": ("choose", "curve"),
    "hub": ("serve", "token"),
}


def application(verb: str | None = None) -> typer.Typer:
    """The command line: with all verbs, or with those of the module that has `verb`."""
    app = typer.Typer(
        name="cofuse",
        help="Build machine-learning models the way open source builds software.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    app.callback()(_top)
    needed = [module for module, verbs in VERBS.items() if verb in verbs]
    for module in needed or VERBS:
        importlib.import_module(f".{module}", __package__).register(app)
    return app


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cofuse {__version__}")
        raise typer.Exit


def _top(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run a command; a mistake of the user gives one clear error and no traceback."""
    read_environment()
    try:
        application(sys.argv[1] if len(sys.argv) > 1 else None)()
    except Interrupted as error:
        _fail(error, 130)
    except CofuseError as error:
        _fail(error, 1)
    except BrokenPipeError:
        # Whoever read the output has had enough; Python would complain once more on closing it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


def _fail(error: CofuseError, status: int) -> None:
    sys.stdout.flush()
    print(f"cofuse: {error}", file=sys.stderr)
    sys.exit(status)
