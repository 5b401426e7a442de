"""The verb that makes a fuse, a merge, or a release of a hub again and compares."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import address
from ..credentials import machine
from ..errors import RefError
from ..store import Store
from .progress import shown
from .weights import Json, Threads

if TYPE_CHECKING:
    from ..fuse.record import InputRecord
    from ..store.remotes import Remote


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command("replay")(replay)


def replay(
    what: Annotated[
        str,
        typer.Argument(metavar="ADDRESS", help="A checkpoint that cofuse fuse made, a merge, or a release of a hub."),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", help="Also write what is made again here; by default nothing is written.")
    ] = None,
    cwd: Annotated[
        Path | None, typer.Option("--from", help="Where relative addresses start; the working folder by default.")
    ] = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Make a fuse, a merge or a release again from its record, and compare every tensor; exit status 1 when anything differs."""
    from ..checkpoint import Hashed
    from ..fuse import fuse_recipe
    from ..fuse.record import read_record, recorded, versions
    from ..fuse.replay import compare, read_through

    same = None
    if out is None:
        same = _of_hub(what, threads, as_json) if "://" in what else _commit(what, threads, as_json)
    if same is not None:
        raise typer.Exit(0 if same else 1)
    there = address.open(what)
    record = read_record(there)
    recipe = record.read_recipe()
    inputs = {name: Hashed(address.open(name, cwd=cwd)) for name in recipe.addresses}
    hub = address.hub_ids(recipe.addresses)
    again = Hashed(fuse_recipe(recipe, inputs), once=True)
    with shown() as progress:
        if out is None:
            read_through(again, threads, progress)
        else:
            again.save(out, threads=threads, progress=progress, last=lambda: recorded(recipe, inputs, again, hub=hub))
        verdict = compare(record, inputs, again, there, threads)
    if as_json:
        found: dict[str, Any] = asdict(verdict)
        for changed in found["inputs"]:
            changed["recorded"] = changed["recorded"].content
            changed["found"] = changed["found"].content
        print(json.dumps({"same": verdict.same, **found}))
    else:
        if verdict.same:
            print(f"the same: content {verdict.content}")
        for changed in verdict.inputs:
            print(f"changed input: {changed.address}: content {_id(changed.found)}, was {_id(changed.recorded)}")
        if verdict.altered:
            print(f"{what} was altered after it was made: content {verdict.found[:16]}, was {verdict.recorded[:16]}")
        if verdict.content != verdict.recorded:
            print(f"made again: content {verdict.content[:16]}, was {verdict.recorded[:16]}")
            ours = versions()
            for name, then in sorted(record.versions.items()):
                if ours.get(name) != then:
                    print(f"  {name} was {then}, is {ours.get(name, 'not there')}")
        _list("tensors that differ", verdict.tensors)
        _list("files that differ", verdict.files)
    if not verdict.same:
        raise typer.Exit(1)


def _of_hub(what: str, threads: int | None, as_json: bool) -> bool | None:
    """Make a release of a hub again, in a store in the cache; whether it is the same, None where it is no release."""
    from ..store.remotes import receive
    from ..store.remotes.addresses import parse
    from ..store.remotes.opening import hub_remote

    found = parse(what)
    remote = hub_remote(found)
    commit, _ = remote.resolve(found.rev)
    store = Store.init(machine().cache / "replays" / f"{sha256(found.url.encode()).hexdigest()[:32]}.cofuse")
    with shown() as progress:
        receive(store, remote, [commit], progress=progress)
    if "round" not in store.load_commit(commit).record:
        return None
    return _release(store, commit, [remote], threads, as_json)


def _commit(what: str, threads: int | None, as_json: bool) -> bool | None:
    """Make a release, or a merge, in the store here again; whether it is the same, None where it is no such commit."""
    store = None if Path(what).exists() else Store.find(Path.cwd())
    try:
        record = {} if store is None else store.load_commit(what).record
    except RefError:
        return None
    if store is not None and "merge" in record:
        return _merge(store, what, threads, as_json)
    if store is None or "round" not in record:
        return None
    from ..store.remotes import Settings, open_remote

    known = Settings(store.objects.places).all().values()
    return _release(store, what, [open_remote(one.address) for one in known], threads, as_json)


def _release(store: Store, what: str, remotes: Sequence[Remote], threads: int | None, as_json: bool) -> bool:
    """Make a release again; what it was made from is fetched, as far as it is not here."""
    from ..hub.rounds.replaying import needs
    from ..hub.rounds.replaying import replay as replay_release
    from ..store.remotes import receive

    with shown() as progress:
        for remote in remotes:
            missing = [need for need in needs(store, what) if need not in store.objects]
            if missing:
                receive(store, remote, missing, progress=progress)
        again = replay_release(store, what, threads=threads, progress=progress)
    if as_json:
        print(json.dumps({"same": again.same, **again._asdict()}))
        return again.same
    if again.same:
        print(f"the same: commit {again.made}")
        return True
    print(f"made again: commit {again.made[:16]}, was {again.recorded[:16]}")
    for name, (then, now) in again.versions.items():
        print(f"  {name} was {then}, is {now}")
    _list("tensors that differ", again.tensors)
    _list("files that differ", again.files)
    return False


def _merge(store: Store, what: str, threads: int | None, as_json: bool) -> bool:
    """Make a commit of `merge`, `cherry-pick` or `revert` again; whether it is the same."""
    from ..store.replaying import replay as replay_merge

    with shown() as progress:
        again = replay_merge(store, what, threads=threads, progress=progress)
    if as_json:
        print(json.dumps({"same": again.same, **again._asdict()}))
    elif again.same:
        print(f"the same: tree {again.made}")
    else:
        print(f"made again: tree {again.made[:16]}, was {again.recorded[:16]}")
        _list("tensors that differ", again.tensors)
        _list("files that differ", again.files)
    return again.same


def _id(one: InputRecord) -> str:
    return one.content[:16] if one.content else "not read"


def _list(what: str, names: tuple[str, ...]) -> None:
    if names:
        more = f" and {len(names) - 10} more" if len(names) > 10 else ""
        print(f"{len(names)} {what}: {', '.join(names[:10])}{more}")
