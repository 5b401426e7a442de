"""The gate's verb."""

from __future__ import annotations

import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from .. import address
from ..document import parse_document
from ..errors import CofuseError, Interrupted
from ..progress import interruptible
from .caches import cache_folder
from .evolution import _needs_training
from .progress import shown
from .weights import Json, Sets, changes

if TYPE_CHECKING:
    from ..measure.suite import OpenSuite

# Exit status by verdict; mistakes have 1 everywhere else, so what is blocked has it alone only where nothing went wrong.
STATUS = {"pass": 0, "block": 1, "undecided": 3}
# Mistakes and failures: a candidate that could not be judged was not refused.
FAILED = 2


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command("gate")(gate)


def gate(
    old: Annotated[str, typer.Argument(help="The model that is to be replaced.")],
    new: Annotated[str, typer.Argument(help="The candidate.")],
    suite: Annotated[str, typer.Option("--suite", help="A suite: a YAML file, a folder of tasks, or a name.")],
    policy: Annotated[
        Path | None, typer.Option("--policy", help="What the candidate may cost, a YAML file; the default policy else.")
    ] = None,
    rapid: Annotated[bool, typer.Option("--rapid", help="Stop as soon as the decision is clear.")] = False,
    tasks: Annotated[
        Path | None, typer.Option("--tasks", help="Folder of tasks named by the suite; COFUSE_TASKS by default.")
    ] = None,
    protocol: Annotated[
        list[str] | None, typer.Option("--protocol", help="Measured by this; old heads by default.")
    ] = None,
    fisher: Annotated[
        str | None, typer.Option("--fisher", help="Fisher of the old model, for the predicted change.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="The run's folder; runs/gate-SUITE by default.")] = None,
    records: Annotated[
        Path | None, typer.Option("--records", help="Folder of evaluation records; OUT/evaluations by default.")
    ] = None,
    set_: Sets = None,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Processes for what is finetuned.")] = 1,
    as_json: Json = False,
) -> None:
    """May NEW take the place of OLD? Exit status 0: pass; 1: block; 3: undecided; 2: it could not be told.

    --set changes a value of the policy: --set max_drop=2.
    """
    try:
        with interruptible():
            _needs_training()
            from ..measure.evaluating import Model
            from ..measure.gate.document import document
            from ..measure.gate.policy import Policy, read_policy
            from ..measure.gate.running import gate as decide
            from ..measure.records import Records
            from ..report.gate import gate_table, write_gate

            wanted = changes(set_)
            chosen = Policy() if policy is None else read_policy(policy, wanted)
            if policy is None and wanted:
                chosen = parse_document("{}", Policy, where="the default policy", changes=wanted)
            named = tasks if tasks is not None else os.environ.get("COFUSE_TASKS")
            opened = _suite(suite, None if named is None else Path(named), tuple(protocol or ("oldhead",)))
            folder = out if out is not None else Path("runs") / f"gate-{opened.name}"
            statistics = None if fisher is None else address.open(fisher)
            before, after = (Model.of(name, partial(address.open, at)) for name, at in (("old", old), ("new", new)))
            with shown() as progress:
                found = decide(
                    before,
                    after,
                    opened,
                    chosen,
                    Records(records if records is not None else folder / "evaluations"),
                    rapid=rapid,
                    fisher=statistics,
                    cache=cache_folder() / "features",
                    jobs=jobs,
                    progress=progress,
                )
            page = write_gate(folder, found)
            said, state = document(found), found.verdict.state
            if as_json:
                print(json.dumps(said))
            else:
                gate_table(said, Console())
                print(f"report: {page.resolve()}")
    except CofuseError as error:
        if isinstance(error, Interrupted):
            raise
        sys.stdout.flush()
        print(f"cofuse: {error}", file=sys.stderr)
        raise typer.Exit(FAILED) from None
    raise typer.Exit(STATUS[state])


def _suite(at: str, tasks: Path | None, protocols: tuple[str, ...]) -> OpenSuite:
    """The suite, of these protocols alone; where it says nothing of old heads, on all there is to test on."""
    from ..measure.suite import open_suite, read_suite

    suite, folder = read_suite(at)
    if suite.protocols.oldhead is None and "oldhead" in protocols:
        # Not standardised: a feature that hardly varies on the old body would get a huge weight, under which a new body
        # that moves it by next to nothing fails.
        suite, folder = read_suite(at, {"protocols.oldhead": {"examples": 1000}})
    return open_suite(suite, [folder] if tasks is None else [folder, tasks], protocols=protocols)
