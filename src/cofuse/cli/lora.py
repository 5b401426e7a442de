"""The verb that turns a finetune into a LoRA."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import address
from .progress import shown
from .weights import Json

DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_SHOWN = 12  # products with the largest errors


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command("extract-lora")(extract_lora)


def extract_lora(
    base: Annotated[str, typer.Argument(metavar="BASE", help="What was finetuned.")],
    tuned: Annotated[str, typer.Argument(metavar="TUNED", help="The finetuned model.")],
    out: Annotated[Path, typer.Argument(help="The folder to write the adapter to.")],
    rank: Annotated[
        int | None, typer.Option("--rank", "--max-rank", min=1, help="Rank of each product, at most; 16 by default.")
    ] = None,
    max_error: Annotated[
        float | None,
        typer.Option("--max-error", min=0, max=1, help="Choose each rank so that this share of the change is left."),
    ] = None,
    alpha: Annotated[float | None, typer.Option("--alpha", help="LoRA's alpha; the rank by default.")] = None,
    modules: Annotated[
        str | None, typer.Option("--modules", metavar="A,B", help="Only modules of these names (q_proj,v_proj).")
    ] = None,
    include: Annotated[
        list[str] | None, typer.Option("--include", "-i", metavar="GLOB", help="Only modules that fit one of these.")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option("--exclude", "-e", metavar="GLOB", help="No modules that fit one of these.")
    ] = None,
    save_module: Annotated[
        list[str] | None, typer.Option("--save-module", metavar="NAME", help="Keep this module whole.")
    ] = None,
    embed_lora: Annotated[
        bool, typer.Option("--embed-lora", help="Embeddings and heads as products too, not whole.")
    ] = False,
    distribute_scale: Annotated[
        bool,
        typer.Option(
            "--distribute-scale/--no-distribute-scale", help="Singular values on both factors, or on A alone."
        ),
    ] = True,
    sv_epsilon: Annotated[float, typer.Option("--sv-epsilon", min=0, help="Drop singular values up to this.")] = 0.0,
    skip_undecomposable: Annotated[
        bool, typer.Option("--skip-undecomposable", help="Leave out what is no product instead of keeping it whole.")
    ] = False,
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="Of the factors: float32, float16, bfloat16; the tuned model's.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a finetune as a LoRA on its base, and say what error that leaves."""
    from ..checkpoint import Hashed
    from ..document import nearest
    from ..errors import FuseError
    from ..fuse.lora import LoraSettings
    from ..fuse.lora import extract_lora as extract
    from ..fuse.record import input_record

    if dtype is not None and dtype not in DTYPES:
        raise FuseError("unknown dtype", where="--dtype", got=dtype, hint=nearest(dtype, DTYPES))
    settings = LoraSettings(
        rank=rank,
        max_error=max_error,
        alpha=alpha,
        modules=tuple(name.strip() for name in (modules or "").split(",") if name.strip()),
        include=tuple(include or ()),
        exclude=tuple(exclude or ()),
        save=tuple(save_module or ()),
        embeddings=embed_lora,
        distribute_scale=distribute_scale,
        epsilon=sv_epsilon,
        skip=skip_undecomposable,
        dtype=None if dtype is None else DTYPES[dtype],
    )
    before, after = Hashed(address.open(base)), Hashed(address.open(tuned))
    with shown() as progress:
        found = extract(after, before, settings, progress)
    made = {
        role: input_record(where, checkpoint).model_dump(mode="json")
        for role, where, checkpoint in (("base", base, before), ("tuned", tuned, after))
    }
    hub = address.hub_ids((base, tuned))
    size = found.save(out, base=made["base"], tuned=made["tuned"], hub=hub)
    worst = sorted(found.products.items(), key=lambda item: (-item[1].error, item[0]))
    if as_json:
        said: dict[str, Any] = json.loads(found.record(made["base"], made["tuned"]))
        print(json.dumps({**said, "bytes": size}))
        return
    for module, product in worst[:_SHOWN]:
        print(f"{product.error:8.4f}  rank {product.rank:<5} {module}")
    if len(worst) > _SHOWN:
        print(f"          and {len(worst) - _SHOWN} more with smaller errors (cofuse.json has them all)")
    print(f"{out}: {len(worst)} products, {len(found.whole) + len(found.biases)} tensors whole, {size:,} bytes")
    if found.left:
        print(f"left out: {len(found.left)} tensors that changed")
    print(f"error {found.error:.4f} of the whole change")
