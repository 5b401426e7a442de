"""Verbs that tell what to fuse: choose, curve."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.console import Console

from .. import address
from ..errors import SuiteError, TaskError
from ..progress import interruptible
from ..store import Store
from .caches import cache_folder
from .progress import shown
from .suites import (
    Jobs,
    Old,
    Only,
    Pins,
    Protocols,
    RecordsFolder,
    Seeds,
    SuiteName,
    kept_records,
    model_at,
    opened_suite,
    processes,
)
from .tasks import Tasks, task_folders
from .training import needs_training
from .weights import Json, Sets, changes

if TYPE_CHECKING:
    from ..fuse import Recipe
    from ..measure.choosing import Chosen
    from ..measure.evaluation.evaluating import Model
    from ..measure.evaluation.suite import OpenSuite


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.command("choose")(choose)
    app.command("curve")(curve)


def choose(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Models to choose from.")],
    suite: SuiteName,
    base: Annotated[str | None, typer.Option("--base", help="What they were tuned from.")] = None,
    way: Annotated[
        str,
        typer.Option(
            "--way", help="greedy, exhaustive, uniform, best, learned, search, wise, gain, similar or fisher."
        ),
    ] = "greedy",
    out: Annotated[Path | None, typer.Option("-o", "--out", metavar="RECIPE", help="The recipe to write.")] = None,
    per: Annotated[str, typer.Option("--per", help="Learned weights: of each model, layer or tensor.")] = "model",
    fisher: Annotated[str | None, typer.Option("--fisher", metavar="F", help="Fisher of the base.")] = None,
    old: Old = None,
    tasks: Tasks = None,
    protocol: Protocols = None,
    task: Only = None,
    seeds: Seeds = None,
    pin: Pins = None,
    set_: Sets = None,
    jobs: Jobs = None,
    test: Annotated[bool, typer.Option(help="Also report scores on the test split.")] = True,
    records: RecordsFolder = None,
    as_json: Json = False,
) -> None:
    """Choose which models to fuse, and write the recipe. The validation split chooses; the test split is only reported."""
    with interruptible():
        needs_training()
        from ..document import parse_document
        from ..measure.choosing import Judge, Learning, Pool, held_out
        from ..measure.choosing import choose as chosen_by

        opened = opened_suite(suite, tasks, protocols=protocol, only=task, seeds=seeds, pins=pin, changes=changes(set_))
        measured_by = list(dict.fromkeys(m.protocol for m in opened.measures))
        if len(measured_by) > 1:
            raise SuiteError(
                "one protocol chooses",
                where=opened.name,
                got=", ".join(measured_by),
                hint=f"--protocol {measured_by[0]}",
            )
        head = "own" if measured_by[0] in ("zeroshot", "perplexity") else "probe"
        learning = parse_document(json.dumps({"per": per, "head": head}), Learning, where="--per")
        store = Store.find(Path.cwd())
        kept = kept_records(records, store, Path("runs") / f"choose-{opened.name}")
        named = dict.fromkeys((*models, *([] if base is None else [base])))
        found: dict[str, Model] = {name: model_at(name, store) for name in named}
        checkpoints = {name: model.open() for name, model in found.items()}
        openers = {name: model.open for name, model in found.items()}
        with shown() as progress:
            options: dict[str, Any] = {
                "old": None if old is None else model_at(old, store),
                "jobs": jobs or processes(opened, checkpoints.values()),
                "cache": cache_folder() / "features",
                "progress": progress,
            }
            pool = Pool(
                tuple(models),
                Judge(openers, held_out(opened), kept, **options),
                base,
                checkpoints,
                None if fisher is None else address.open(fisher),
                opened.tasks,
                learning,
                progress=progress,
            )
            chosen = chosen_by(way, pool)
            tested = _tested(chosen, pool, Judge(openers, opened, kept, **options)) if test else {}
        if out is not None:
            _write_recipe(out, chosen, way, opened)
        if as_json:
            print(json.dumps(_document(chosen, way, opened, tested)))
        else:
            _say(chosen, way, opened, tested, out)


def _tested(chosen: Chosen, pool: Any, judge: Any) -> dict[str, float]:
    """Scores on the test split: of what was chosen, and of what it has to beat. They choose nothing."""
    from ..measure.choosing import mean_of

    alone = [t for t in chosen.tried if t.name in pool.models]
    rows: dict[str, Recipe] = {"chosen": chosen.recipe, "all of them": mean_of(pool.models)}
    if alone:
        rows["the best alone"] = max(alone, key=lambda t: t.score).recipe
    if pool.base is not None:
        rows["the base"] = mean_of([pool.base])
    return dict(zip(rows, judge(list(rows.values())), strict=True))


def _document(chosen: Chosen, way: str, suite: OpenSuite, tested: dict[str, float]) -> dict[str, Any]:
    return {
        "what": "choose",
        "way": way,
        "suite": {"name": suite.name, "hash": suite.hash},
        "recipe": chosen.recipe.canonical,
        "held_out": chosen.score,
        "reasons": dict(chosen.reasons),
        "tried": [{"name": t.name, "held_out": t.score} for t in chosen.tried],
        "test": tested,
    }


def _write_recipe(path: Path, chosen: Chosen, way: str, suite: OpenSuite) -> None:
    import yaml

    from ..checkpoint import replace_file

    said = [f"chosen by {way} on {suite.name} {suite.hash[:16]}: {chosen.score:.2f} held out"]
    said += [f"{model}: {why}" for model, why in chosen.reasons.items()]
    comment = "".join(f"# {' '.join(line.split())}\n" for line in said)
    text = yaml.safe_dump(chosen.recipe.canonical, sort_keys=False, allow_unicode=True)
    replace_file(path, (comment + text).encode())


def _say(chosen: Chosen, way: str, suite: OpenSuite, tested: dict[str, float], out: Path | None) -> None:
    for t in chosen.tried:
        print(f"{t.score:8.2f} held out  {t.name}")
    for model, why in chosen.reasons.items():
        print(f"{model}: {why}")
    print(f"{way} on {suite.name}: {chosen.score:.2f} held out")
    for name, value in tested.items():
        print(f"{value:8.2f} test      {name}")
    if out is not None:
        print(f"recipe: {out}; make it with: cofuse fuse {out} OUT")


def curve(
    one: Annotated[str, typer.Argument(metavar="A", help="A model.")],
    other: Annotated[str, typer.Argument(metavar="B", help="Another of the same shapes.")],
    task: Annotated[str, typer.Option("--task", metavar="T", help="A task: a folder, or a YAML file.")],
    points: Annotated[int, typer.Option("--points", min=2, help="Places on the line, its ends among them.")] = 11,
    split: Annotated[str, typer.Option("--split", help="train, validation or test.")] = "test",
    examples: Annotated[
        int | None, typer.Option("--examples", min=1, help="The first so many; all by default.")
    ] = None,
    head: Annotated[
        str, typer.Option("--head", help="own, kept (head.safetensors beside each), probe; auto: the first there is.")
    ] = "auto",
    max_length: Annotated[int, typer.Option("--max-length", min=2, help="Longest sequence in tokens.")] = 128,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="A picture to draw: x.svg or x.png.")] = None,
    tasks: Tasks = None,
    as_json: Json = False,
) -> None:
    """Loss and score on the straight line between two models, and the barrier on it."""
    for what, got, known in (
        ("split", split, ("train", "validation", "test")),
        ("head", head, ("auto", "own", "kept", "probe")),
    ):
        if got not in known:
            raise TaskError(f"no such {what}", got=got, expected=", ".join(known))
    with interruptible(), shown() as progress:
        needs_training()
        from ..measure.curve import CurveHead
        from ..measure.curve import curve as along
        from ..report.curve import curve_table, drawer, write_curve
        from ..tasks import open_task
        from ..tasks.heads import HEAD
        from ..tasks.task import Split

        if out is not None:
            drawer(out)
        heads = [Path(name) / HEAD for name in (one, other)]
        found = along(
            address.open(one),
            address.open(other),
            open_task(task, folders=task_folders(tasks)),
            points=points,
            split=cast("Split", split),
            examples=examples,
            head=cast("CurveHead", head),
            heads=heads if all(h.is_file() for h in heads) else None,
            max_length=max_length,
            progress=progress,
        )
        if out is not None:
            write_curve(out, found, (one, other))
    if as_json:
        print(json.dumps({**found.document(), "models": [one, other]}))
    else:
        curve_table(found, (one, other), Console())
        if out is not None:
            print(f"picture: {out}")
