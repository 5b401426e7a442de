"""The gate's verb."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from .. import address
from ..document import parse_document
from ..errors import CofuseError, Interrupted
from ..progress import interruptible
from ..store import Store
from .caches import cache_folder
from .progress import shown
from .suites import RecordsFolder, SuiteName, kept_records, model_at, opened_suite
from .tasks import Tasks
from .training import needs_training
from .weights import Json, Sets, changes

if TYPE_CHECKING:
    from ..measure.evaluation.suite import OpenSuite

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
    suite: SuiteName,
    policy: Annotated[
        Path | None, typer.Option("--policy", help="What the candidate may cost, a YAML file; the default policy else.")
    ] = None,
    rapid: Annotated[bool, typer.Option("--rapid", help="Stop as soon as the decision is clear.")] = False,
    tasks: Tasks = None,
    protocol: Annotated[
        list[str] | None, typer.Option("--protocol", help="Measured by this; old heads by default.")
    ] = None,
    fisher: Annotated[
        str | None, typer.Option("--fisher", help="Fisher of the old model, for the predicted change.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="The run's folder; runs/gate-SUITE by default.")] = None,
    records: RecordsFolder = None,
    set_: Sets = None,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Processes for what is finetuned.")] = 1,
    as_json: Json = False,
) -> None:
    """May NEW take the place of OLD? Exit status 0: pass; 1: block; 3: undecided; 2: it could not be told.

    --set changes a value of the policy: --set max_drop=2.
    """
    try:
        with interruptible():
            needs_training()
            from ..measure.gate.document import document
            from ..measure.gate.policy import Policy, read_policy
            from ..measure.gate.running import gate as decide
            from ..report.gate import gate_table, write_gate

            wanted = changes(set_)
            chosen = Policy() if policy is None else read_policy(policy, wanted)
            if policy is None and wanted:
                chosen = parse_document("{}", Policy, where="the default policy", changes=wanted)
            opened = _suite(suite, tasks, protocol or ["oldhead"])
            folder = out if out is not None else Path("runs") / f"gate-{opened.name}"
            statistics = None if fisher is None else address.open(fisher)
            store = Store.find(Path.cwd())
            before, after = model_at(old, store, "old"), model_at(new, store, "new")
            with shown() as progress:
                found = decide(
                    before,
                    after,
                    opened,
                    chosen,
                    kept_records(records, store, folder),
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


def _suite(at: str, tasks: Path | None, protocols: list[str]) -> OpenSuite:
    """The suite, of these protocols alone; where it says nothing of old heads, on all there is to test on."""
    from ..measure.evaluation.suite import read_suite

    # Not standardised: a feature that hardly varies on the old body would get a huge weight, under which a new body
    # that moves it by next to nothing fails.
    silent = "oldhead" in protocols and read_suite(at)[0].protocols.oldhead is None
    changed = {"protocols.oldhead": {"examples": 1000}} if silent else {}
    return opened_suite(at, tasks, protocols=protocols, changes=changed)
