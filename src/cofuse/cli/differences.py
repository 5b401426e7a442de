"""Verbs that compare versions: diff, blame."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import address
from ..checkpoint import Checkpoint
from ..checkpoint.remembered import Remembered
from ..errors import DocumentError, RefError
from ..store import Store
from ..store.blame import blame as blamed
from ..store.differences import changes, differences, files_of
from ..store.parts import Trees
from .caches import cache_folder
from .history import here, plain
from .progress import shown
from .weights import Json, Threads

if TYPE_CHECKING:
    from ..store.differences import Difference, Differences


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.command("diff")(diff)
    app.command("blame")(blame)


def diff(
    base: Annotated[str, typer.Argument(metavar="A", help="A version, a folder, any address.")],
    tuned: Annotated[str, typer.Argument(metavar="B", help="What it is compared with.")],
    like: Annotated[
        str | None, typer.Option("--like", metavar="C", help="Also the cosine between B - A and C - A.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="X.PATCH", help="Write the change as a patch.")
    ] = None,
    exact: Annotated[bool, typer.Option("--exact", help="A patch that gives B back bit for bit.")] = False,
    sparse: Annotated[
        str | None, typer.Option("--sparse", metavar="SHARE", help="A patch of this share of the values: 0.5%.")
    ] = None,
    by: Annotated[
        str | None,
        typer.Option("--by", help="Which values it keeps: magnitude, fish:F, random:SEED, bias, names:GLOB."),
    ] = None,
    rank: Annotated[int | None, typer.Option("--rank", min=1, help="A patch of low-rank products.")] = None,
    error: Annotated[
        float | None,
        typer.Option("--error", min=0, max=1, help="The share of the change that a low-rank patch may lose."),
    ] = None,
    per_tensor: Annotated[bool, typer.Option("--per-tensor", help="The share is of each tensor.")] = False,
    values: Annotated[
        bool, typer.Option("--values", help="Keep new values only: the patch can be tried on another base.")
    ] = False,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Say which tensors differ and by how much, or write the change as a patch."""
    wanted: dict[str, Any] = {"exact": exact, "sparse": sparse, "by": by, "rank": rank, "error": error}
    wanted |= {"per_tensor": per_tensor, "values": values}
    if out is not None:
        from .patches import make

        make(base, tuned, out, **wanted, threads=threads, as_json=as_json)
        return
    given = next((name for name, value in wanted.items() if value not in (None, False)), None)
    if given is not None:
        raise DocumentError(
            "an option of a patch",
            got=f"--{given.replace('_', '-')}",
            hint="say where the patch is written: -o x.patch",
        )
    memory = Remembered(cache_folder() / "ids")
    a, b, same = _pair(base, tuned, memory)
    with shown() as progress:
        third = None if like is None else _opened(like, memory)
        found = differences(a, b, like=third, threads=threads, progress=progress)
    memory.keep()
    found = replace(found, same=found.same + same)
    _tell(found, changes(files_of(a), files_of(b)), as_json, like is not None)


def _pair(base: str, tuned: str, memory: Remembered) -> tuple[Checkpoint, Checkpoint, int]:
    """What two addresses name, as far as they can differ, and how many tensors are the same anyway.

    Of two versions every safetensors file counts, also those beside the checkpoint.
    """
    store = Store.find(Path.cwd())
    if store is not None and not Path(base).exists() and not Path(tuned).exists():
        try:
            ids = store.tree(base), store.tree(tuned)
        except RefError:
            pass  # not both of them are versions
        else:
            trees = Trees(store.objects)
            return trees.apart(trees.load(ids[0]), trees.load(ids[1]), (base, tuned))
    return _opened(base, memory), _opened(tuned, memory), 0


def _opened(what: str, memory: Remembered) -> Checkpoint:
    return memory.watch(address.open(what))


def _tell(found: Differences, files: dict[str, str], as_json: bool, like: bool) -> None:
    if as_json:
        rows = [{key: _plain(value) for key, value in asdict(one).items()} for one in found.tensors]
        whole = {key: _plain(value) for key, value in asdict(found).items() if key != "tensors"}
        print(json.dumps({"tensors": rows, "files": files, **whole}))
        return
    if found.tensors:
        print(f"{'|B-A|/|A|':>10} {'differ':>8} {'largest':>9} {'cosine' if like else '':>6}  tensor")
    for one in found.tensors:
        print(f"{_row(one)}  {one.name}{_note(one)}")
    for path, how in files.items():
        print(f"{how:>10} {'':>8} {'':>9} {'':>6}  {path}")
    if found.relative is not None:
        print(f"{_row(found)}  all of these")
    print(f"{len(found.tensors)} tensors differ, {found.same} are the same; {len(files)} small files differ")


def _row(one: Difference | Differences) -> str:
    relative = getattr(one, "status", "") if one.relative is None else f"{one.relative:.3g}"
    fraction = "" if one.fraction is None else f"{100 * one.fraction:.3g} %"
    largest = "" if one.largest is None else f"{one.largest:.3g}"
    cosine = "" if one.cosine is None else f"{one.cosine:.3f}"
    return f"{relative:>10} {fraction:>8} {largest:>9} {cosine:>6}"


def _note(one: Difference) -> str:
    if one.before is not None and one.after is not None and one.before != one.after:
        return f"  {one.status} from {_spec(one.before)} to {_spec(one.after)}"
    strange = f"  {one.strange} values are not finite" if one.strange else ""
    spec = one.before or one.after
    return strange if one.relative is not None or spec is None else f"  {_spec(spec)}"


def _spec(spec: tuple[str, tuple[int, ...]]) -> str:
    return f"{spec[0]} {list(spec[1])}"


def _plain(value: Any) -> Any:
    """JSON has no infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def blame(
    rev: Annotated[str, typer.Argument(help="The version.")] = "HEAD",
    glob: Annotated[str, typer.Argument(metavar="NAMES", help="Only tensors whose names fit: 'encoder.*'.")] = "*",
    as_json: Json = False,
) -> None:
    """Say which commit last changed each tensor."""
    store = here()
    found = blamed(store.objects, store.resolve(rev), glob)
    if as_json:
        facts = {
            name: {"commit": made.id, "author": made.author, "time": made.when.isoformat(), "message": made.message}
            for name, made in found.items()
        }
        print(json.dumps(facts))
        return
    for name, made in found.items():
        said = plain(made.message.partition("\n")[0])
        print(f"{made.id[:12]} {made.when:%Y-%m-%d} {name}  {said[:60]}")
