"""Verbs on checkpoints: fuse, body, show."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from .. import address
from ..checkpoint import body as body_of
from ..checkpoint import content_id
from ..document import read_value
from ..errors import DocumentError
from .progress import shown

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
    threads: Threads = None,
    set_: Sets = None,
) -> None:
    """Make one checkpoint out of several, by a recipe."""
    from ..fuse import fuse_recipe, read_recipe

    read = read_recipe(recipe, changes(set_))
    opened = {name: address.open(name) for name in read.addresses}
    base = opened[read.base_model] if read.base_model else None
    fused = fuse_recipe(read, [opened[m.model] for m in read.models], base)
    plan = fused.plan
    if dry_run:
        for name, tensor in plan.tensors.items():
            print(f"{tensor.method or 'copy':<16} {tensor.spec.dtype:<5} {list(tensor.spec.shape)!s:<20} {name}")
        print(f"{len(plan.tensors)} tensors; {plan.bytes_read:,} bytes to read, {plan.bytes_written:,} to write")
        return
    with shown() as progress:
        written = fused.save(
            out, max_shard_bytes=None if shard is None else int(shard * 1e9), threads=threads, progress=progress
        )
    print(f"{out}: {written.tensors} tensors, {written.bytes:,} bytes in {written.shards} file(s)")


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
    what: Annotated[str, typer.Argument(metavar="ADDRESS", help="A checkpoint.")],
    as_json: Json = False,
) -> None:
    """Show what a checkpoint holds, and its content id."""
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
