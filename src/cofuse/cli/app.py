"""The command line: one verb a job, the same addresses everywhere, exit status 0 only when what was asked is done."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from .. import __version__
from ..errors import CofuseError, Interrupted
from . import evolution, history, lora, methods, replay, weights

app = typer.Typer(
    name="cofuse",
    help="Build machine-learning models the way open source builds software.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cofuse {__version__}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    pass


for module in (weights, methods, replay, lora, history, evolution):
    module.register(app)


def main() -> None:
    """Run a command; a mistake of the user gives one clear error and no traceback."""
    try:
        app()
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
