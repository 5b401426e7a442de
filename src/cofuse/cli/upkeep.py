"""Verbs that keep a store small and whole: gc, fsck."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ..errors import StoreError
from ..store import Damage, Health, Store
from .history import here
from .progress import shown
from .weights import Json, Threads


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    for verb in (gc, fsck):
        app.command(verb.__name__)(verb)


def gc(
    prune: Annotated[
        str, typer.Option("--prune", metavar="DAYS", help="Remove what nothing has needed for so many days; now: all.")
    ] = "14",
    packing: Annotated[bool, typer.Option("--pack/--no-pack", help="Make what is new quick to read.")] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Pack versions, and remove what no branch, no tag, no running reader and no running writer needs."""
    try:
        days = 0.0 if prune.lower() == "now" else float(prune)
    except ValueError:
        raise StoreError("not a number of days", got=prune, expected="such as 14, 0.5 or now") from None
    with shown() as progress:
        packed, done = here().gc(packing=packing, grace_days=days, dry_run=dry_run, threads=threads, progress=progress)
    if as_json:
        print(json.dumps({"packed": asdict(packed), **asdict(done)}))
        return
    if packed.rewritten:
        print(
            f"{packed.rewritten} objects packed, {abs(packed.gained):,} bytes {'less' if packed.gained >= 0 else 'more'}"
        )
    verb = "would be removed" if dry_run else "removed"
    print(f"{done.removed} objects, {done.freed:,} bytes {verb}; {done.kept} objects kept")


def fsck(
    remote: Annotated[
        str | None, typer.Option("--mend", metavar="REMOTE", help="Fetch good copies of what is damaged from there.")
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option("--from", metavar="DIR", help="Mend from a folder: another store, or the files of a version."),
    ] = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Check everything that a branch or a tag can reach, and mend it from elsewhere."""
    store = here()
    with shown() as progress:
        health = store.fsck(threads=threads, progress=progress)
        if not health.ok and (remote is not None or source is not None):
            health = _mended(store, health, source, remote)
    if as_json:
        print(json.dumps({"ok": health.ok, **asdict(health)}))
    else:
        for damage in health.damaged:
            _show(damage)
        print(f"{health.commits} commits, {health.objects} objects, {health.bytes:,} bytes checked")
    if not health.ok:
        raise StoreError(
            "the store is damaged",
            where=store.path,
            got=f"{len(health.damaged)} damaged",
            hint="what is not listed above is whole; mend the rest with --mend REMOTE or --from DIR",
        )


def _mended(store: Store, health: Health, source: Path | None, remote: str | None) -> Health:
    from ..store.mending import mend
    from .remotes import opened

    origin = source if source is not None else opened(store, str(remote))
    with shown() as progress:
        while True:
            done = mend(store.objects, [damage.id for damage in health.damaged], origin, progress=progress)
            for object_id, why_not in done.items():
                progress.say(f"{object_id[:12]} {'mended' if why_not is None else f'not mended: {why_not}'}")
            health = store.fsck(progress=progress)
            # A commit that has come back may name more that is missing.
            if health.ok or not any(why_not is None for why_not in done.values()):
                return health


def _show(damage: Damage) -> None:
    print(f"{damage.id}: {damage.problem}")
    for version in damage.versions:
        refs = ", ".join(ref.removeprefix("refs/").removeprefix("heads/") for ref in version.refs)
        print(f"  in {version.id[:12]} {version.message} ({refs})")
    for part in damage.parts:
        print(f"  as {part}")
