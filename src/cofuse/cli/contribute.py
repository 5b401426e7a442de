"""Verbs of who contributes to a model on a hub, and of who looks after it: contribute, contributions."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from contextlib import nullcontext, redirect_stdout
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import DocumentError
from ..progress import Progress, interruptible
from .hubs import Address, on_hub, plain, repository
from .progress import shown
from .tasks import Tasks
from .weights import Json, Sets

if TYPE_CHECKING:
    from ..hub.client import HubClient
    from ..hub.sending import Bundle, Journal

contributions = typer.Typer(help="Contributions to a model on a hub.", no_args_is_help=True, rich_markup_mode=None)
Number = Annotated[int, typer.Argument(metavar="N", min=1, help="The contribution's number.")]


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.command("contribute")(contribute)
    for name, verb in (
        ("list", list_),
        ("show", show),
        ("comment", comment),
        ("accept", accept),
        ("refuse", refuse),
        ("withdraw", withdraw),
        ("retry", retry),
    ):
        contributions.command(name)(verb)
    app.add_typer(contributions, name="contributions")


def contribute(
    address: Address,
    task: Annotated[
        str | None, typer.Option("--task", help="Finetune on this task first: see cofuse finetune.")
    ] = None,
    source: Annotated[
        Path | None, typer.Option("--from", metavar="DIR|PATCH", help="Send what a training script made instead.")
    ] = None,
    title: Annotated[str | None, typer.Option("--title", help="In a line.")] = None,
    message: Annotated[str, typer.Option("-m", "--message", help="As long as it needs to be.")] = "",
    data: Annotated[str, typer.Option("--data", help="What it was trained on, in words.")] = "",
    licence: Annotated[str, typer.Option("--licence", help="Of the weights.")] = "",
    label: Annotated[list[str] | None, typer.Option("--label", help="A word; may be given again.")] = None,
    metric: Annotated[
        list[str] | None, typer.Option("--metric", metavar="NAME=VALUE", help="What you measured; may be given again.")
    ] = None,
    branch: Annotated[str, typer.Option("--branch", help="Of the hub, whose policy fuses it.")] = "main",
    base: Annotated[
        str | None, typer.Option("--base", metavar="REV", help="What it starts from; the branch's version of now.")
    ] = None,
    fisher: Annotated[
        Path | None, typer.Option("--fisher", metavar="F", help="Its Fisher, from cofuse fisher: a folder.")
    ] = None,
    sign: Annotated[
        Path | None, typer.Option("--sign", metavar="KEY", help="Sign it with this private key (PEM).")
    ] = None,
    whole: Annotated[bool, typer.Option("--whole", help="Send all weights, not a patch.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until it has been looked at.")] = False,
    folder: Annotated[
        Path | None, typer.Option("--folder", help="Where it is made, and kept; NAME.contribution by default.")
    ] = None,
    mask: Annotated[str | None, typer.Option("--mask", help="Of the finetuning: fish:0.5%, bias, ...")] = None,
    per_tensor: Annotated[bool, typer.Option("--per-tensor", help="The mask's share is of each tensor.")] = False,
    lora: Annotated[int | None, typer.Option("--lora", metavar="RANK", min=1, help="Train a LoRA.")] = None,
    ia3: Annotated[bool, typer.Option("--ia3", help="Train an IA3 adapter.")] = False,
    examples: Annotated[int | None, typer.Option("--examples", min=1, help="Examples to train on, drawn; all.")] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Optimizer steps, instead of epochs.")] = None,
    epochs: Annotated[float | None, typer.Option("--epochs", min=0, help="Times over the examples; 3.")] = None,
    rate: Annotated[float | None, typer.Option("--lr", min=0, help="Learning rate; see cofuse finetune.")] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Examples a step.")] = 16,
    max_length: Annotated[int, typer.Option("--max-length", min=2, help="Tokens of an example, at most.")] = 128,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the finetuning.")] = 0,
    tasks: Tasks = None,
    set_: Sets = None,
    as_json: Json = False,
) -> None:
    """Finetune a model of a hub and send what changed, or send what a training script made; its data stays here.

    What is sent is a patch. After an interruption the same command goes on where it was, training and upload alike.
    """
    where = repository(address)
    if (task is None) == (source is None):
        raise DocumentError("what is to be sent?", where="the options", expected="one of --task and --from")
    if source is not None and not source.exists():
        raise DocumentError("no such file or folder", where="--from", got=source)
    with interruptible():
        from ..hub.client import HubClient
        from ..hub.sending import Journal, send, signed

        journal = Journal(folder or Path(f"{where.name}.contribution"))
        with HubClient.at(where) as client:
            started = _pinned(client, journal, base or branch, [address, branch, base, task, str(source)])
            if task is not None:
                given = {
                    "mask": mask,
                    "per_tensor": per_tensor,
                    "lora": lora,
                    "ia3": ia3,
                    "examples": examples,
                    "steps": steps,
                    "epochs": epochs,
                    "rate": rate,
                    "batch": batch,
                    "max_length": max_length,
                    "seed": seed,
                    "tasks": tasks,
                    "set_": set_,
                }
                with redirect_stdout(sys.stderr) if as_json else nullcontext():
                    source = _trained(journal, f"{where.url}@{started}", {"task": task, **given})
            said: dict[str, Any] = {
                "title": title or (task or str(source)).rstrip("/").rpartition("/")[2],
                "branch": branch,
                "base": started,
                "message": message,
                "data": data,
                "licence": licence,
                "labels": label or [],
                "metrics": _metrics(metric or []),
            }
            with shown() as progress:
                bundle = _bundle(f"{where.url}@{started}", Path(str(source)), journal, whole, fisher, progress)
                if sign is not None:
                    said["signature"] = signed(bundle, sign, journal.folder)
                made = send(client, bundle, said, journal, progress)
                url = client.page(made["number"])
                if wait:
                    made = client.wait(made["number"], progress=progress)
    if as_json:
        print(json.dumps({**made, "url": url}))
    else:
        print(f"#{made['number']} {made['state']}: {made['title']}\n{url}")
        if made["reason"]:
            print(made["reason"])
    if wait and made["state"] == "refused":
        raise typer.Exit(1)


def _pinned(client: HubClient, journal: Journal, rev: str, what: list[str | None]) -> str:
    """The commit that is started from: what the branch was at when this contribution was begun here."""
    name = json.dumps(what)
    kept = journal.get("base")
    if not isinstance(kept, dict) or kept.get("of") != name:
        kept = {"of": name, "commit": client.resolve(rev)}
        journal.keep(base=kept)
    return str(kept["commit"])


def _trained(journal: Journal, base: str, given: Mapping[str, Any]) -> Path:
    """The patch of a finetuning, which is done once."""
    from ..hub.sending import PATCH
    from .finetune import finetune

    what = sha256(json.dumps({"base": base, **given}, sort_keys=True, default=str).encode()).hexdigest()
    patch = journal.folder / PATCH
    if journal.get("made") != what or not patch.is_file():
        journal.folder.mkdir(parents=True, exist_ok=True)
        finetune(base, out=patch, **given)
        journal.keep(made=what)
    return patch


def _bundle(
    base: str,
    source: Path,
    journal: Journal,
    whole: bool,
    fisher: Path | None,
    progress: Progress,
) -> Bundle:
    """What is sent of a patch, or of a model's folder."""
    from .. import address as addresses
    from ..checkpoint import body, open_local, save
    from ..hub.sending import Bundle, patch_of
    from ..patch import Patch, apply

    statistics = None if fisher is None else _fisher_files(fisher)
    if source.suffix == ".patch" and not whole:
        Patch(source)  # refused here already, if it is none
        return Bundle(patch=source, fisher=statistics)
    before = addresses.open(base)
    tuned = apply(before, Patch(source)) if source.suffix == ".patch" else body(open_local(source), like=before)
    if not whole:
        journal.keep(made=None)  # a finetuning's patch, where this one is put
        return Bundle(patch=patch_of(before, tuned, journal.folder, progress), fisher=statistics)
    out = journal.folder / "weights"
    save(tuned, out, progress=progress)  # anew: what lies there may be another contribution's
    return Bundle(weights={p.name: p for p in sorted(out.glob("*.safetensors"))}, fisher=statistics)


def _fisher_files(folder: Path) -> dict[str, Path]:
    found = {p.name: p for p in (folder / "statistics.json", *sorted(folder.glob("*.safetensors"))) if p.is_file()}
    if "statistics.json" not in found or len(found) < 2:
        raise DocumentError("not a Fisher", where=folder, expected="a folder from cofuse fisher")
    return found


def _metrics(given: list[str]) -> dict[str, float]:
    found = {}
    for one in given:
        name, _, value = one.partition("=")
        try:
            found[name] = float(value)
        except ValueError:
            raise DocumentError("not a metric", where="--metric", got=one[:100], expected="NAME=VALUE") from None
    return found


# Looking, and deciding


def list_(
    address: Address,
    state: Annotated[str | None, typer.Option("--state", help="received, open, fusing, fused, refused, ...")] = None,
    branch: Annotated[str | None, typer.Option("--branch", help="Of this branch.")] = None,
    account: Annotated[str | None, typer.Option("--by", help="Offered by this account.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="The newest so many.")] = 50,
    as_json: Json = False,
) -> None:
    """List contributions, newest first."""
    from itertools import islice

    with on_hub(address) as client:
        found = list(islice(client.contributions(state=state, branch=branch, account=account), limit))
    if as_json:
        print(json.dumps(found))
        return
    for one in found:
        print(f"#{one['number']:<5} {one['state']:<10} {plain(one['account']):<16} {plain(one['title'])}")


def show(
    address: Address,
    number: Number,
    as_json: Json = False,
) -> None:
    """Show a contribution: what its author says, what the checks found, what was said and done."""
    with on_hub(address) as client:
        found, said = client.contribution(number), list(client.comments(number))
    if as_json:
        print(json.dumps({**found, "comments": said}))
        return
    print(f"#{found['number']} {found['state']}: {plain(found['title'])}")
    rows = {
        "by": found["account"],
        "base": f"{found['base'][:12]} of {found['branch']}",
        "commit": (found["commit"] or "")[:12],
        "data": found["data"],
        "licence": found["licence"],
        "labels": ", ".join(found["labels"]),
        "reason": found["reason"],
    }
    for name, value in rows.items():
        if value:
            print(f"  {name + ':':<10}{plain(value)}")
    for check in found["checks"]:
        print(f"  {check['state']:<7} {check['name']:<10} {plain(check['figure'])}")
    for one in said:
        print(
            f"  {plain(one['account'] or 'the hub')}: {one['event'] + ' ' if one['event'] else ''}{plain(one['body'])}"
        )


def comment(
    address: Address,
    number: Number,
    body: Annotated[str, typer.Option("-m", "--message", help="What you say.")],
) -> None:
    """Say something of a contribution."""
    with on_hub(address) as client:
        client.comment(number, body)


def accept(address: Address, number: Number) -> None:
    """Say, as a maintainer, that a contribution shall be fused."""
    with on_hub(address) as client:
        _tell(client.accept(number))


def refuse(
    address: Address,
    number: Number,
    reason: Annotated[str, typer.Option("-m", "--reason", help="Why.")],
) -> None:
    """Refuse a contribution, as a maintainer."""
    with on_hub(address) as client:
        _tell(client.refuse(number, reason))


def withdraw(address: Address, number: Number) -> None:
    """Take a contribution back, as its author."""
    with on_hub(address) as client:
        _tell(client.withdraw(number))


def retry(address: Address, number: Number) -> None:
    """Have a contribution looked at again."""
    with on_hub(address) as client:
        _tell(client.retry(number))


def _tell(found: Mapping[str, Any]) -> None:
    print(f"#{found['number']} {found['state']}: {plain(found['title'])}")
