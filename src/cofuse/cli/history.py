"""Verbs of version control: init, commit, log, branch, tag, checkout, fsck."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from .. import address
from ..errors import StoreError
from ..store import Store
from .progress import shown
from .weights import Json, Threads

Message = Annotated[str, typer.Option("-m", "--message", help="What is new.")]


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    for verb in (init, commit, log, branch, tag, checkout, fsck):
        app.command(verb.__name__)(verb)


def here() -> Store:
    """The store of the working folder, or of one above it.

    Raises:
        StoreError: there is none.
    """
    store = Store.find(Path.cwd())
    if store is None:
        raise StoreError("no store here or above", where=Path.cwd(), hint="make one with: cofuse init")
    return store


def init() -> None:
    """Make a store in .cofuse/ here."""
    store = Store.init(Path.cwd() / ".cofuse")
    print(f"made {store.path}")


def commit(
    source: Annotated[str, typer.Argument(metavar="DIR", help="A folder, kept byte for byte; or any address.")],
    message: Message,
    branch: Annotated[str | None, typer.Option("--branch", help="The branch to move; HEAD's by default.")] = None,
    author: Annotated[str | None, typer.Option("--author", help="Who did it; COFUSE_AUTHOR by default.")] = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Keep a version of a checkpoint."""
    store = here()
    path = Path(source)
    what = path if path.is_dir() else address.open(source)
    who = author if author is not None else os.environ.get("COFUSE_AUTHOR", "")
    with shown() as progress:
        made = store.commit(what, message=message, branch=branch, author=who, threads=threads, progress=progress)
    if as_json:
        print(json.dumps({"commit": made.id, "tree": made.tree, "content": made.content}))
    else:
        print(f"{made.id[:12]} {message}\n  content {made.content}")


def log(
    rev: Annotated[str, typer.Argument(help="Where to start.")] = "HEAD",
    limit: Annotated[int | None, typer.Option("-n", "--limit", min=1, help="How many at most.")] = None,
    as_json: Json = False,
) -> None:
    """Show versions, newest first."""
    for made in here().log(rev, limit):
        if as_json:
            print(
                json.dumps(
                    {
                        "commit": made.id,
                        "tree": made.tree,
                        "content": made.content,
                        "parents": made.parents,
                        "message": made.message,
                        "author": made.author,
                        "time": made.when.isoformat(),
                    }
                )
            )
            continue
        print(f"commit {made.id}")
        if made.author:
            print(f"author {made.author}")
        print(f"date   {made.when:%Y-%m-%d %H:%M:%S} UTC\n\n    {made.message}\n")


def branch(
    name: Annotated[str | None, typer.Argument(help="A branch to make; all are listed without it.")] = None,
    rev: Annotated[str, typer.Argument(help="Where it points.")] = "HEAD",
) -> None:
    """List branches, or make one."""
    _refs(here().branches() if name is None else {name: here().branch(name, rev)})


def tag(
    name: Annotated[str | None, typer.Argument(help="A tag to make; all are listed without it.")] = None,
    rev: Annotated[str, typer.Argument(help="Where it points.")] = "HEAD",
) -> None:
    """List tags, or make one."""
    _refs(here().tags() if name is None else {name: here().tag(name, rev)})


def _refs(refs: dict[str, str]) -> None:
    for name, target in sorted(refs.items()):
        print(f"{target[:12]} {name}")


def checkout(
    rev: Annotated[str, typer.Argument(help="What to write: main, a tag, main~2, an id.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty folder.")],
    threads: Threads = None,
) -> None:
    """Write a version into a folder, every byte as it was."""
    with shown() as progress:
        here().checkout(rev, folder, threads=threads, progress=progress)
    print(f"{rev} in {folder}")


def fsck() -> None:
    """Check everything that a branch or a tag can reach."""
    with shown() as progress:
        health = here().fsck(progress=progress)
    for damage in health.damaged:
        print(f"{damage.id}: {damage.problem}")
    print(f"{health.commits} commits, {health.objects} objects, {health.bytes:,} bytes checked")
    if not health.ok:
        raise StoreError(
            "the store is damaged",
            where=here().path,
            got=f"{len(health.damaged)} damaged",
            hint="what is not listed above is whole; commit the damaged versions again from their source",
        )
