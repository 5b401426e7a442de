"""The verb that trains: finetune."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import address
from ..errors import CheckpointError, CofuseError, DocumentError
from ..progress import interruptible
from .progress import shown
from .tasks import Tasks, task_folders
from .training import needs_training
from .weights import Json, Sets, changes

if TYPE_CHECKING:
    from ..measure.finetuning.tuning import Finetuned
    from ..patch.choice import Choice
    from ..tasks.peft import Adapting

# The fewer values train, the further each has to go; see docs/results/fisher.md, section 3.
RATES = {"all": 1.5e-4, "mask": 1e-3, "adapter": 1.5e-3}
HEAD_RATE = 2e-3


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command("finetune")(finetune)


def finetune(
    base: Annotated[str, typer.Argument(metavar="BASE", help="The model to start from.")],
    task: Annotated[str, typer.Option("--task", help="A folder of parquet files with task.json, or a YAML file.")],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="OUT", help="A folder to write, or a file x.patch.")],
    mask: Annotated[
        str | None,
        typer.Option(
            "--mask",
            help="Train these values alone: fish:0.5%, magnitude:0.5%, random:0.5%:SEED, bias, names:GLOB,GLOB.",
        ),
    ] = None,
    per_tensor: Annotated[bool, typer.Option("--per-tensor", help="The mask's share is of each tensor.")] = False,
    fisher: Annotated[
        str | None, typer.Option("--fisher", metavar="F", help="The Fisher of a fish mask; measured when not given.")
    ] = None,
    fisher_examples: Annotated[
        int, typer.Option("--fisher-examples", min=1, help="Examples that the Fisher is measured on.")
    ] = 1024,
    lora: Annotated[
        int | None, typer.Option("--lora", metavar="RANK", min=1, help="Train a LoRA of this rank.")
    ] = None,
    ia3: Annotated[bool, typer.Option("--ia3", help="Train an IA3 adapter.")] = False,
    examples: Annotated[int | None, typer.Option("--examples", min=1, help="Examples to train on, drawn; all.")] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Optimizer steps, instead of epochs.")] = None,
    epochs: Annotated[float | None, typer.Option("--epochs", min=0, help="Times over the examples; 3.")] = None,
    rate: Annotated[
        float | None,
        typer.Option(
            "--lr", min=0, help="Learning rate; 1.5e-4 for all of the model, 1e-3 for a mask, 1.5e-3 for an adapter."
        ),
    ] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Examples a step.")] = 16,
    max_length: Annotated[int, typer.Option("--max-length", min=2, help="Tokens of an example, at most.")] = 128,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of head, order, draw and random mask.")] = 0,
    head: Annotated[
        Path | None, typer.Option("--head-out", metavar="H", help="Where the head goes; beside the weights.")
    ] = None,
    tasks: Tasks = None,
    set_: Sets = None,
    as_json: Json = False,
) -> None:
    """Finetune BASE on a task: all of it, the values that a mask chooses, or an adapter.

    OUT is a folder with the tuned body and its head, or a patch, with the head beside it. --set changes any other setting
    of the training (--set warmup=0.1). After an interruption the same command goes on where it was.
    """
    with interruptible():
        needs_training()
        from ..measure.finetuning.tuning import check_places, tune
        from ..measure.finetuning.work import discard
        from ..tasks import draw, open_task

        part = _part(mask, per_tensor, fisher, lora, ia3)
        opened = open_task(task, folders=task_folders(tasks))
        kind = "all" if part is None else "mask" if mask is not None else "adapter"
        settings = _settings(
            {
                "steps": steps,
                "epochs": (3.0 if steps is None else None) if epochs is None else epochs,
                "learning_rate": RATES[kind] if rate is None else rate,
                "head_learning_rate": HEAD_RATE,
                "batch_size": batch,
                "max_length": max_length,
                **changes(set_),
            }
        )
        before = address.open(base)
        statistics = None if fisher is None else address.open(fisher)
        check_places(out, head, patch=out.suffix == ".patch")
        work = out.with_name(f"{out.name}.training")
        with shown() as progress:
            try:
                found = tune(
                    before,
                    opened,
                    settings,
                    part,
                    seed=seed,
                    examples=draw(opened.examples("train"), examples, [seed]),
                    statistics=statistics,
                    fisher_examples=fisher_examples,
                    folder=work,
                    threads=os.cpu_count() or 1,
                    progress=progress,
                )
            except CheckpointError:
                raise  # a full disk, perhaps: with room again it goes on
            except CofuseError:
                discard(work)  # there is nothing to go on with, unlike after an interruption
                raise
            if out.suffix == ".patch":
                size = found.save_patch(out, head=head, progress=progress).path.stat().st_size
            else:
                size = found.save(out, head=head, progress=progress)
        discard(work)
    _tell(found, out, size, as_json)


def _part(
    mask: str | None, per_tensor: bool, fisher: str | None, lora: int | None, ia3: bool
) -> Choice | Adapting | None:
    from ..patch.choice import choice
    from ..tasks.peft import Ia3, Lora

    if (mask is not None) + (lora is not None) + ia3 > 1:
        raise DocumentError("the options do not go together", expected="one of --mask, --lora, --ia3, or none of them")
    chosen = None if mask is None else choice(mask, "--mask").whole(None, per_tensor=per_tensor, where="--mask")
    if chosen is not None and chosen.by == "fisher" and chosen.argument:
        raise DocumentError("the Fisher of a training", where="--mask", got=mask, hint=f"--fisher {chosen.argument}")
    if fisher is not None and (chosen is None or chosen.by != "fisher"):
        raise DocumentError("an option of fish masks", got="--fisher", hint="--mask fish:0.5%")
    if per_tensor and chosen is None:
        raise DocumentError("an option of masks", got="--per-tensor", hint="--mask fish:0.5%")
    if chosen is not None:
        return chosen
    return Lora(rank=lora) if lora is not None else Ia3() if ia3 else None


def _settings(wanted: dict[str, Any]) -> Any:
    from ..document import parse_document
    from ..tasks.finetune import Finetuning

    return parse_document("{}", Finetuning, where="the options", changes=wanted)


def _tell(found: Finetuned, out: Path, size: int, as_json: bool) -> None:
    changed, total = found.changed(), sum(found.base.spec(name).numel for name in found.base.names())
    if as_json:
        facts = {"out": str(out), "bytes": size, "changed": changed, "values": total}
        print(json.dumps({**found.record, **facts, "reachable": found.reachable}))
        return
    record = found.record
    share = 100 * found.trained / found.reachable
    print(f"{record['task']}, validation: {record['metric']} {found.score:.2f} after {record['steps']} steps")
    print(f"trained: {record['part']}: {found.trained:,} values, {share:.3g} % of the body's {found.reachable:,}")
    print(f"changed: {changed:,} of {total:,} values, {100 * changed / total:.3g} %")
    print(f"{out}: {size:,} bytes")
