"""Verbs of remotes: clone, push, pull, fetch, remote add, list and remove."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import RefError, StoreError
from ..progress import interruptible
from ..store import Store
from .history import here
from .keys import account
from .progress import shown
from .weights import Json

if TYPE_CHECKING:
    from ..store.remotes import Moved, Named, Remote, Settings

Endpoint = Annotated[str | None, typer.Option("--endpoint", help="URL of the S3 server; Amazon's by default.")]
Region = Annotated[str | None, typer.Option("--region", help="Region of the S3 server.")]
Threads = Annotated[int | None, typer.Option("--threads", min=1, help="Transfers at a time; 8 by default.")]
Name = Annotated[str | None, typer.Argument(metavar="[REMOTE]", help="A remote's name; origin, or the only one.")]

remote = typer.Typer(help="Other stores that this one knows.", no_args_is_help=True, rich_markup_mode=None)


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    for verb in (clone, push, pull, fetch):
        app.command(verb.__name__)(verb)
    remote.command("add")(add)
    remote.command("list")(list_remotes)
    remote.command("remove")(remove)
    app.add_typer(remote, name="remote")


def clone(
    address: Annotated[
        str, typer.Argument(help="A folder, file:///folder, s3://bucket/prefix, or https://hub/owner/name.")
    ],
    folder: Annotated[Path | None, typer.Argument(metavar="[DIR]", help="A new folder; named after ADDRESS.")] = None,
    branch: Annotated[
        str | None, typer.Option("--branch", help="The branch to be on; the remote's by default.")
    ] = None,
    endpoint: Endpoint = None,
    region: Region = None,
    threads: Threads = None,
) -> None:
    """Make a store here that has all that another has."""
    from ..store import remotes
    from ..store.remotes.opening import absolute

    named = remotes.Named(absolute(address), _options(endpoint, region))
    into = folder or Path(named.address.rstrip("/").removesuffix("/.cofuse").rpartition("/")[2] or "clone")
    with interruptible(), shown() as progress:
        made = remotes.clone(_open(named), into, named, branch=branch, threads=threads, progress=progress)
    print(f"cloned into {made.path}\n  on {made.refs.head()}")


def push(
    name: Name = None,
    refs: Annotated[
        list[str] | None, typer.Argument(metavar="[BRANCH|TAG...]", help="HEAD's branch by default.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All branches.")] = False,
    tags: Annotated[bool, typer.Option("--tags", help="All tags.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Also where that loses what is there, if it is what you last saw.")
    ] = False,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Bring branches and tags to a remote."""
    from ..store import remotes

    store = here()
    known, named = _named(store, name)
    chosen = _chosen(store, refs or [], everything, tags)
    wanted = [remotes.Push(ref, commit, force) for ref, commit in chosen.items()]
    with interruptible(), shown() as progress:
        moved = remotes.push(store, _open(named), wanted, name=known, threads=threads, progress=progress)
    _tell(moved, as_json)


def fetch(name: Name = None, threads: Threads = None, as_json: Json = False) -> None:
    """Get what is new on a remote, and leave branches alone."""
    from ..store import remotes

    store = here()
    known, named = _named(store, name)
    with interruptible(), shown() as progress:
        moved = remotes.fetch(store, _open(named), known, threads=threads, progress=progress)
    _tell(moved, as_json)


def pull(
    name: Name = None,
    branch: Annotated[str | None, typer.Argument(help="HEAD's by default.")] = None,
    ff_only: Annotated[bool, typer.Option("--ff-only", help="Stop where both have something of their own.")] = False,
    threads: Threads = None,
) -> None:
    """Get what is new on a branch of a remote, and go on from there; where both have something of their own, merge."""
    from ..store import remotes
    from ..store.refs import HEADS

    store = here()
    known, named = _named(store, name)
    on = branch or store.refs.head().removeprefix(HEADS)
    with interruptible(), shown() as progress:
        theirs, ours = remotes.pull(store, _open(named), known, on, threads=threads, progress=progress)
        if ours is None and ff_only:
            raise RefError(
                "both have something of their own",
                where=on,
                got=f"{known}/{on} is at {theirs[:12]}",
                hint=f"join them: cofuse merge {known}/{on}",
            )
        if ours is None:
            from ..store.joining import merge

            author = os.environ.get("COFUSE_AUTHOR", "")
            done = merge(store, f"{known}/{on}", into=on, author=author, threads=threads, progress=progress)
            ours = done.commit.id
    print(f"{on} is at {ours[:12]}" + ("" if ours == theirs else f", which has all that {known} has"))


def add(
    name: Annotated[str, typer.Argument(help="What it is called here.")],
    address: Annotated[
        str, typer.Argument(help="A folder, file:///folder, s3://bucket/prefix, or https://hub/owner/name.")
    ],
    endpoint: Endpoint = None,
    region: Region = None,
) -> None:
    """Keep a remote's address; keys are never kept: they come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or `cofuse login`."""
    from ..store import remotes
    from ..store.remotes.opening import absolute

    named = remotes.Named(absolute(address), _options(endpoint, region))
    _open(named)  # refuses what is no address
    _settings(here()).add(name, named)
    print(f"{name} is {named.address}")


def list_remotes(as_json: Json = False) -> None:
    """List remotes."""
    known = _settings(here()).all()
    if as_json:
        print(json.dumps({name: {"address": named.address, **named.options} for name, named in known.items()}))
        return
    for name, named in sorted(known.items()):
        print(" ".join([name, named.address, *(f"{key}={value}" for key, value in named.options.items())]))


def remove(name: Annotated[str, typer.Argument(help="What it is called here.")]) -> None:
    """Forget a remote, and where its branches were."""
    from ..store.refs import REMOTES

    store = here()
    _settings(store).remove(name)
    for ref in store.refs.names(f"{REMOTES}{name}/"):
        store.refs.update(ref, None)


def _settings(store: Store) -> Settings:
    from ..store.remotes import Settings

    return Settings(store.objects.places)


def opened(store: Store, name: str) -> Remote:
    """The remote of a name."""
    return _open(_named(store, name)[1])


def _named(store: Store, name: str | None) -> tuple[str, Named]:
    """A remote's name and what is kept of it; without a name, origin or the only one."""
    from ..store.remotes import DEFAULT

    settings = _settings(store)
    known = settings.all()
    chosen = name or (next(iter(known)) if len(known) == 1 else DEFAULT)
    return chosen, settings.get(chosen)


def _options(endpoint: str | None, region: str | None) -> dict[str, str]:
    given = {"endpoint": endpoint, "region": region}
    return {key: value for key, value in given.items() if value is not None}


def _open(named: Named) -> Remote:
    """The remote, with what the environment says of keys; what is kept of endpoint and region comes first."""
    from ..store.remotes import open_remote

    return open_remote(named.address, account(named.options.get("endpoint"), named.options.get("region")))


def _chosen(store: Store, names: list[str], everything: bool, tags: bool) -> dict[str, str]:
    """The refs to push, by full name."""
    from ..store.refs import HEADS, TAGS

    branches, all_tags = store.branches(), store.tags()
    chosen: dict[str, str] = {}
    if everything:
        chosen |= {HEADS + name: commit for name, commit in branches.items()}
    if tags:
        chosen |= {TAGS + name: commit for name, commit in all_tags.items()}
    if not names and not everything and not tags:
        names = [store.refs.head()]
    for name in names:
        found = [
            (under + short, commits[short])
            for under, commits in ((HEADS, branches), (TAGS, all_tags))
            for short in [name.removeprefix(under)]
            if short in commits and (short != name or not name.startswith("refs/"))
        ]
        if len(found) != 1:
            raise RefError(
                "more than one ref has this name" if found else "no such branch or tag",
                got=ascii(name[:80]),
                hint=f"say {HEADS}{name} or {TAGS}{name}" if found else "see: cofuse branch, cofuse tag",
            )
        chosen |= found
    if not chosen:
        raise StoreError("there is nothing to push", where=store.path)
    return chosen


def _tell(moved: list[Moved], as_json: bool) -> None:
    if as_json:
        print(json.dumps([{"ref": m.ref, "old": m.old, "new": m.new} for m in moved]))
        return
    for m in moved:
        how = "new" if m.old is None else "as it was" if m.old == m.new else f"was {m.old[:12]}"
        print(f"{m.new[:12]} {m.ref} ({how})")
