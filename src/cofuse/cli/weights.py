"""Verbs on checkpoints: fuse, body, show."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

from .. import address
from ..checkpoint import Checkpoint, content_id
from ..checkpoint import body as body_of
from ..document import Keys, line_of, read_value
from ..errors import CofuseError, DocumentError
from .caches import cache_folder
from .progress import shown

if TYPE_CHECKING:
    from ..fuse import Executor, Recipe

Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
Threads = Annotated[int | None, typer.Option("--threads", min=1, help="Threads; the processor's number by default.")]
Sets = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a value of the file.")]


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.command("fuse")(fuse)
    app.command("body")(body)
    app.command("show")(show)


def changes(given: list[str] | None) -> dict[str, Any]:
    """`--set key=value` options as dotted keys and YAML values.

    >>> changes(["finetune.steps=30", "name=x"])
    {'finetune.steps': 30, 'name': 'x'}
    """
    found = {}
    for item in given or []:
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise DocumentError("not a setting", where=f"--set {item}", expected="KEY=VALUE")
        try:
            found[key] = read_value(value)
        except (yaml.YAMLError, ValueError):  # ValueError: a date of month 13
            raise DocumentError("not a YAML value", where=f"--set {item}", got=value) from None
    return found


def fuse(
    recipe: Annotated[Path, typer.Argument(help="A recipe (mergekit's YAML works).")],
    out: Annotated[Path, typer.Argument(help="The folder to write.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would happen, and stop.")] = False,
    shard: Annotated[
        float | None, typer.Option("--shard", min=0.001, help="Largest file in GB; one file by default.")
    ] = None,
    device: Annotated[str, typer.Option("--device", help="Where blocks are computed: cpu, cuda, cuda:1.")] = "cpu",
    seed: Annotated[int | None, typer.Option("--seed", help="Of random masks; the recipe's by default.")] = None,
    threads: Threads = None,
    set_: Sets = None,
    as_json: Json = False,
) -> None:
    """Make one checkpoint out of several, by a recipe."""
    from ..checkpoint import Hashed
    from ..checkpoint.remembered import Remembered
    from ..fuse import CpuExecutor, fuse_recipe, read_recipe
    from ..fuse.execute import executor_for
    from ..fuse.record import recorded

    wanted = changes(set_)
    if seed is not None:
        wanted["seed"] = seed
    threads = threads or os.cpu_count() or 1
    read = read_recipe(recipe, wanted)
    executor: Executor = CpuExecutor(threads) if device == "cpu" else executor_for(device)
    with _placed(recipe):
        opened = {name: _open(name, read, recipe) for name in read.addresses}
        if dry_run:
            _show(read, opened, threads, as_json)
            return
        memory = Remembered(cache_folder() / "ids")
        inputs = {name: memory.watch(checkpoint) for name, checkpoint in opened.items()}
        fused = fuse_recipe(read, inputs, executor)
    for note in fused.plan.notes:
        print(f"cofuse: note: {note}", file=sys.stderr)
    result = Hashed(fused, once=True)
    with shown() as progress:
        written = result.save(
            out,
            max_shard_bytes=None if shard is None else int(shard * 1e9),
            threads=threads,
            progress=progress,
            last=lambda: recorded(read, inputs, result, device=device, hub=address.hub_ids(read.addresses)),
        )
    memory.keep()
    if as_json:
        print(
            json.dumps({"out": str(out), "tensors": written.tensors, "bytes": written.bytes, "files": written.shards})
        )
    else:
        print(f"{out}: {written.tensors} tensors, {written.bytes:,} bytes in {written.shards} file(s)")


def _open(name: str, recipe: Recipe, path: Path) -> Checkpoint:
    try:
        return address.open(name)
    except CofuseError as error:
        # Which line of the recipe names it, where it is a model of this recipe and not of one inside it.
        place = next((part.place for part in recipe.parts if part.model == name), ())
        raise _with_line(error, path, place) from error


@contextmanager
def _placed(recipe: Path) -> Iterator[None]:
    """Errors of a plan, with the line of the recipe that they come from."""
    from ..fuse.slices import PlannedError

    try:
        yield
    except PlannedError as error:
        raise _with_line(error, recipe, error.keys) from error


def _with_line(error: CofuseError, recipe: Path, keys: Keys) -> CofuseError:
    line = line_of(recipe, keys) if keys else None
    if line is None:
        return error
    where = f"{recipe}:{line}" + (f" ({error.where})" if error.where else "")
    return type(error)(error.what, where=where, got=error.got, expected=error.expected, hint=error.hint)


def _show(recipe: Recipe, opened: Mapping[str, Checkpoint], threads: int, as_json: bool) -> None:
    """The plan, and how the models fit together; the latter also where there can be no plan."""
    from ..fuse import fuse_recipe
    from ..fuse.compatibility import check
    from ..fuse.outline import outline

    models = {part.key: opened[part.model] for part in recipe.parts if isinstance(part.model, str)}
    base = recipe.base_key if recipe.base_key in models else None
    settled = recipe.model_fields_set.union(*(given.model_fields_set for _, given in recipe.given()))
    report = check(models, base, settled=settled, threads=threads) if models else None
    plan = None
    try:
        plan = outline(fuse_recipe(recipe, opened).plan, threads)
    finally:
        if as_json:
            data = {"plan": plan.data if plan else None, "compatibility": report.as_json() if report else None}
            print(json.dumps(data))
        else:
            print(*(text for text in (plan, report.text() if report else None) if text is not None), sep="\n\n")


def body(
    tuned: Annotated[str, typer.Argument(help="The finetuned model.")],
    out: Annotated[Path, typer.Argument(help="The folder to write.")],
    like: Annotated[str, typer.Option("--like", help="The base it was finetuned from.")],
    threads: Threads = None,
) -> None:
    """Write a finetuned model without its task's head."""
    mine = body_of(address.open(tuned), like=address.open(like))
    with shown() as progress:
        mine.save(out, threads=threads, progress=progress)
    choices = mine.choices
    print(f"{out}: {len(mine.names())} tensors; prefix {choices.prefix or 'none'!r}")
    for what, names in (("dropped (head)", choices.dropped), ("kept from the base", choices.kept)):
        if names:
            print(f"  {what}: {', '.join(names[:6])}{' ...' if len(names) > 6 else ''}")


def show(
    what: Annotated[str, typer.Argument(metavar="ADDRESS", help="A checkpoint, a version, or a patch.")],
    fisher: Annotated[
        str | None, typer.Option("--fisher", metavar="F", help="Statistics of the base: predict what the change does.")
    ] = None,
    base: Annotated[
        str | None, typer.Option("--base", metavar="MODEL", help="With --fisher: what the change starts from.")
    ] = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Show what a checkpoint holds, and its content id; what a version changed, and how; what a patch changes.

    With --fisher, which tensors of a patch or a tuned model change the output of the base most.
    """
    if fisher is not None or base is not None:
        from .predictions import foretell

        foretell(what, fisher, base, threads=threads, as_json=as_json)
        return
    if what.endswith(".patch") and (path := Path(os.path.expanduser(what))).is_file():
        from .patches import explain

        explain(path, as_json)
        return
    from .history import show_version

    if show_version(what, as_json=as_json):
        return
    checkpoint = address.open(what)
    specs = {name: checkpoint.spec(name) for name in checkpoint.names()}
    total = sum(spec.nbytes for spec in specs.values())
    identity = content_id(checkpoint)
    if as_json:
        tensors = {n: {"dtype": s.dtype, "shape": list(s.shape)} for n, s in specs.items()}
        print(json.dumps({"content": identity, "bytes": total, "tensors": tensors, "files": list(checkpoint.files)}))
        return
    for name, spec in specs.items():
        print(f"{spec.dtype:<5} {list(spec.shape)!s:<20} {name}")
    for alias, name in checkpoint.aliases.items():
        print(f"tied  {alias} = {name}")
    print(f"{len(specs)} tensors, {total:,} bytes; files: {', '.join(checkpoint.files) or 'none'}")
    print(f"content {identity}")
