"""Verbs that join histories: merge, cherry-pick, revert."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import ConflictError
from .history import here, plain
from .progress import shown
from .weights import Json, Threads, changes

if TYPE_CHECKING:
    from ..store.joining import How, Join

Into = Annotated[str | None, typer.Option("--into", metavar="BRANCH", help="The branch that moves; HEAD's by default.")]
Method = Annotated[
    str | None,
    typer.Option("--method", help="How what both sides changed is fused (cofuse methods says which there are)."),
]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="A parameter of the method; of one side: ours.KEY, theirs.KEY."),
]
Seed = Annotated[int, typer.Option("--seed", help="Of random masks.")]
Ours = Annotated[
    list[str] | None,
    typer.Option("--ours", metavar="GLOB", help="Where both changed it, take ours: tensors and files."),
]
Theirs = Annotated[
    list[str] | None, typer.Option("--theirs", metavar="GLOB", help="Where both changed it, take theirs.")
]
Message = Annotated[
    str | None, typer.Option("-m", "--message", help="Of the commit; made from the versions by default.")
]
Author = Annotated[str | None, typer.Option("--author", help="Who did it; COFUSE_AUTHOR by default.")]


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.command("merge")(merge)
    for verb, text in (
        ("cherry-pick", "Do on a branch what one commit did elsewhere: ours + (commit - its parent)."),
        ("revert", "Take back on a branch what one commit did: ours - (commit - its parent)."),
    ):
        app.command(verb, help=text)(_one(verb.replace("-", "_")))


def merge(
    rev: Annotated[str, typer.Argument(help="What is merged: a branch, a tag, an id.")],
    into: Into = None,
    method: Method = None,
    set_: Sets = None,
    seed: Seed = 0,
    ours: Ours = None,
    theirs: Theirs = None,
    base: Annotated[
        str | None, typer.Option("--base", metavar="REV", help="What both come from, where that is not one version.")
    ] = None,
    no_ff: Annotated[bool, typer.Option("--no-ff", help="Make a commit where moving the branch would do.")] = False,
    message: Message = None,
    author: Author = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Join another history to a branch: what one side changed is taken, what both changed is fused (linear: the mean)."""
    from ..store.joining import merge as join

    with _told(as_json), shown() as progress:
        done = join(
            here(),
            rev,
            into=into,
            how=_how(method, set_, seed, ours, theirs),
            base=base,
            fast_forward=not no_ff,
            message=message,
            author=_author(author),
            threads=threads,
            progress=progress,
        )
    _say(done, as_json)


def _one(verb: str) -> Callable[..., None]:
    """The verb of one commit: `cherry_pick` or `revert`."""

    def run(
        rev: Annotated[str, typer.Argument(help="The version whose change is meant.")],
        into: Into = None,
        method: Method = None,
        set_: Sets = None,
        seed: Seed = 0,
        ours: Ours = None,
        theirs: Theirs = None,
        mainline: Annotated[
            int | None, typer.Option("--mainline", min=1, help="Which parent a merge is seen from.")
        ] = None,
        message: Message = None,
        author: Author = None,
        threads: Threads = None,
        as_json: Json = False,
    ) -> None:
        from ..store import joining

        with _told(as_json), shown() as progress:
            done = getattr(joining, verb)(
                here(),
                rev,
                into=into,
                how=_how(method, set_, seed, ours, theirs),
                mainline=mainline,
                message=message,
                author=_author(author),
                threads=threads,
                progress=progress,
            )
        _say(done, as_json)

    return run


def _how(
    method: str | None, sets: list[str] | None, seed: int, ours: list[str] | None, theirs: list[str] | None
) -> How:
    from ..store.deciding import Settled
    from ..store.joining import How

    return How(method, changes(sets), seed, Settled(tuple(ours or ()), tuple(theirs or ())))


def _author(given: str | None) -> str:
    return given if given is not None else os.environ.get("COFUSE_AUTHOR", "")


@contextmanager
def _told(as_json: bool) -> Iterator[None]:
    """Conflicts as JSON too, for whoever settles them by program."""
    try:
        yield
    except ConflictError as error:
        from ..store.deciding import Conflict

        if as_json:
            print(json.dumps({"conflicts": [asdict(one) for one in error.conflicts if isinstance(one, Conflict)]}))
        raise


def _say(done: Join, as_json: bool) -> None:
    report = done.report
    for note in report.notes:
        print(f"cofuse: note: {note}", file=sys.stderr)
    if as_json:
        facts = {"commit": done.commit.id, "tree": done.commit.tree, "content": done.commit.content, "made": done.made}
        print(json.dumps({**facts, "fused": report.fused, "settled": report.settled}))
        return
    print(f"{done.commit.id[:12]} {plain(done.commit.message)}")
    if done.made:
        print(f"  from one side alone: {report.ours} of ours, {report.theirs} of theirs; fused: {len(report.fused)}")
        for name, side in report.settled.items():
            print(f"  as it was asked for: {name} from {side}")
    else:
        print(f"  no commit was needed: the branch is at {done.commit.id[:12]}")
