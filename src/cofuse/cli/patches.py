"""Verbs on patches: diff -o, apply, and what show says of one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import address
from ..checkpoint import Checkpoint, Hashed, content_id
from ..errors import PatchError
from .caches import cache_folder
from .progress import shown
from .weights import Json, Threads

if TYPE_CHECKING:
    from ..patch import Applied, Patch, Way

_SHOWN = 12  # tensors that change most


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command("apply")(apply)


def make(
    base: str,
    tuned: str,
    out: Path,
    *,
    exact: bool = False,
    sparse: str | None = None,
    by: str | None = None,
    rank: int | None = None,
    error: float | None = None,
    per_tensor: bool = False,
    values: bool = False,
    threads: int | None = None,
    as_json: bool = False,
) -> None:
    """Write the patch that turns BASE into TUNED: `cofuse diff BASE TUNED -o x.patch`.

    Args:
        base: an address.
        tuned: an address; of a PEFT adapter, its own factors are kept unless another way is asked for.
        out: the file to write, ending in `.patch`.
        exact: all of the change, bit for bit; so it is when no other way is given.
        sparse: the share of values to keep: `0.5%` or `0.005`.
        by: which: `magnitude` (of the change; the default), `fish:ADDRESS`, `random:SEED`, `bias`, `names:GLOB,GLOB`;
            with the share in it where `sparse` has none: `fish:0.5%:ADDRESS`.
        rank: keep matrices' changes as products of this rank, at most.
        error: of the least rank that leaves at most this share of each change.
        per_tensor: the share is of each tensor.
        values: keep new values only, so that the patch can be tried on another base.
        threads: the processor's number when None.
        as_json: print JSON.

    Raises:
        PatchError: the options do not go together.
    """
    from ..checkpoint.remembered import Remembered
    from ..patch import describe
    from ..patch import make as make_patch

    before = address.open(base)
    after = address.open(tuned, base=before)
    memory = Remembered(cache_folder() / "ids")
    way = _way(before, after, exact=exact, sparse=sparse, by=by, rank=rank, error=error, per_tensor=per_tensor)
    with shown() as progress:
        patch = make_patch(
            memory.watch(before), memory.watch(after), out, way, values=values, threads=threads, progress=progress
        )
    memory.keep()
    found = describe(patch)
    print(json.dumps(found) if as_json else "\n".join(summary(patch, found)))


def _way(
    base: Checkpoint,
    tuned: Checkpoint,
    *,
    exact: bool,
    sparse: str | None,
    by: str | None,
    rank: int | None,
    error: float | None,
    per_tensor: bool,
) -> Way:
    from ..checkpoint.adapter import Adapter
    from ..patch import LowRank, Sparse, Way
    from ..patch.adapters import FromAdapter
    from ..patch.choice import choice

    masked = sparse is not None or by is not None
    low = rank is not None or error is not None
    if exact + masked + low > 1 or (per_tensor and not masked):
        raise PatchError(
            "the options do not go together", expected="--exact, or --sparse and --by, or --rank and --error"
        )
    if low:
        return LowRank(rank=rank, error=error)
    if masked:
        chosen = choice(by or "magnitude", "--by").whole(sparse, per_tensor=per_tensor, where="--sparse")
        if chosen.by == "random" and chosen.seed is None:
            raise PatchError("a random mask has a seed", where="--by", got=by, expected="random:0")
        return Sparse(
            share=1.0 if chosen.share is None else chosen.share,
            by=chosen.by,
            fisher=address.open(chosen.argument) if chosen.by == "fisher" and chosen.argument else None,
            seed=chosen.seed or 0,
            globs=chosen.globs,
            per_tensor=per_tensor,
        )
    if not exact and isinstance(tuned, Adapter) and (tuned.base is base or content_id(tuned.base) == content_id(base)):
        return FromAdapter(tuned)
    return Way()


def apply(
    base: Annotated[str, typer.Argument(metavar="BASE", help="The model that the patch belongs to.")],
    patch: Annotated[Path, typer.Argument(metavar="PATCH", help="A file that ends in .patch.")],
    out: Annotated[Path | None, typer.Argument(metavar="OUT", help="The folder to write.")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Only check that it gives what it says.")] = False,
    adapter: Annotated[bool, typer.Option("--adapter", help="Write a PEFT adapter instead of the model.")] = False,
    any_base: Annotated[
        bool, typer.Option("--any-base", help="Take another base than the patch's; the result is approximate.")
    ] = False,
    shard: Annotated[
        float | None, typer.Option("--shard", min=0.001, help="Largest file in GB; one file by default.")
    ] = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Write a model with a patch on it; what is written is checked against the patch's content id."""
    from ..checkpoint.remembered import Remembered
    from ..patch import Patch
    from ..patch import apply as apply_patch
    from ..patch.adapters import save_adapter

    if verify == (out is not None):
        raise PatchError("either a folder to write, or --verify", expected="cofuse apply BASE x.patch OUT")
    memory = Remembered(cache_folder() / "ids")
    before = memory.watch(address.open(base))
    applied = apply_patch(before, Patch.load(patch), anywhere=any_base)
    same = content_id(before) == applied.patch.base
    said: dict[str, Any] = {"base": applied.patch.base, "exact": same and applied.patch.exact}
    if out is None:
        said["content"] = _checked(Hashed(applied), same, threads)
        line = f"{patch}: gives content {said['content']}"
    elif adapter:
        said.update(out=str(out), bytes=save_adapter(applied, out, base))
        line = f"{out}: a PEFT adapter, {said['bytes']:,} bytes"
    else:
        result = Hashed(applied, once=True)

        def check() -> dict[str, bytes]:
            said["content"] = _checked(result, same, threads)
            return {}

        with shown() as progress:
            written = result.save(
                out,
                max_shard_bytes=None if shard is None else int(shard * 1e9),
                threads=threads,
                progress=progress,
                last=check,  # before the folder takes its place
            )
        said.update(out=str(out), tensors=written.tensors, bytes=written.bytes, files=written.shards)
        line = f"{out}: {written.tensors} tensors, {written.bytes:,} bytes in {written.shards} file(s)"
    memory.keep()
    print(json.dumps(said) if as_json else f"{line}{'' if same else ' (approximate: on another base)'}")


def _checked(result: Hashed, same: bool, threads: int | None) -> str:
    applied: Applied = result.checkpoint  # type: ignore[assignment]
    from ..checkpoint import content_id_of

    found = content_id_of(result.tensor_ids(threads=threads or os.cpu_count()))
    if same and found != applied.patch.result:
        raise PatchError(
            "the patch gave another model than it says",
            where=applied.patch.path,
            got=f"content id {found}",
            expected=f"content id {applied.patch.result}",
            hint="get the patch again",
        )
    return found


# What a patch says of itself


def explain(path: Path, as_json: bool) -> None:
    """Show a patch to a person: `cofuse show x.patch`."""
    from ..patch import Patch, describe

    patch = Patch.load(path)
    said = describe(patch)
    if as_json:
        print(json.dumps(said))
        return
    print(*summary(patch, said), sep="\n")
    found = said["tensors"]
    order = sorted(found, key=lambda n: (-(found[n]["change"] or 0), -(found[n]["values"] or 0), n))
    print(f"{'change':>8} {'left':>8} {'values':>12} {'bytes':>12}  tensor")
    for name in order[:_SHOWN]:
        row = found[name]
        columns = [_short(row["change"]), _short(row["error"]), _count(row["values"]), _count(row["bytes"])]
        kind = {"new": " (new)", "product": f" (rank {row['rank']})"}.get(row["how"], "")
        print("{:>8} {:>8} {:>12} {:>12}".format(*columns), f" {name}{kind}")
    if len(order) > _SHOWN:
        print(f"and {len(order) - _SHOWN} more that change less (--json has them all)")


def summary(patch: Patch, found: dict[str, Any]) -> list[str]:
    """What a patch is, in lines; `found` is what `describe` says of it."""
    error = "not known" if found["error"] is None else f"{found['error']:.4f}"
    gives = (
        "the tuned model, bit for bit"
        if found["exact"]
        else f"approximately the tuned model: error {error} of the whole change (relative Frobenius norm), "
        f"at most {found['most']:.3g} in a value"
    )
    how = [str(c.how) for c in patch.manifest.tensors.values()]
    parts = [
        f"{how.count(kind)} {word}" for kind, word in (("edit", "edited"), ("product", "of low rank"), ("new", "new"))
    ]
    lines = [
        f"{found['patch']}: {found['made']}; {found['bytes']:,} bytes",
        f"base   {found['base']}",
        f"tuned  {found['tuned']}",
        f"gives  {found['result']}",
        f"       {gives}",
        f"tensors: {', '.join(parts)}, {len(found['removed'])} removed; "
        f"files: {', '.join([*found['files'], *(f'{n} (removed)' for n in found['removed_files'])]) or 'none'}",
    ]
    if found["values"]:
        count, at = found["values"], found["position_bytes"]
        lines.append(f"values: {count:,} of {found['elements']:,}, {8 * found['value_bytes'] / count:.2f} bits each")
        if at:
            limit = f"{8 * found['position_entropy_bytes'] / count:.2f} if drawn at random from each tensor"
            lines.append(f"places: {8 * at / count:.2f} bits each ({limit})")
    return lines


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _count(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"
