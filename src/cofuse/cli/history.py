"""Verbs on a history: init, commit, log, status, branch, tag, checkout; and what `show` says of a version."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from .. import address
from ..checkpoint.remembered import Remembered
from ..errors import RefError, StoreError
from ..store import Commit, Store
from ..store.branches import delete_branch, move_branch, rename_branch, use_branch
from ..store.commits import history
from ..store.differences import changes, tensor_changes
from ..store.parts import Trees, Whole
from ..store.refs import HEADS, REMOTES, TAGS, check_ref_name
from ..store.status import compare, scan
from ..store.trees import Tree, Weights, load_tree
from .caches import cache_folder
from .progress import shown
from .scores import score_lines, scores_of
from .weights import Json, Threads

Message = Annotated[str, typer.Option("-m", "--message", help="What is new.")]


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    for verb in (init, commit, log, status, branch, tag, checkout):
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
    store = here()
    names = _names(store)
    for made in islice(history(store.objects, store.resolve(rev)), limit):
        if as_json:
            print(json.dumps(_facts(made, names)))
        else:
            print(f"{_heading(made, names)}\n")


def _names(store: Store) -> dict[str, list[str]]:
    """What points to each commit: branches, the one HEAD names first, then tags and remotes' branches."""
    head = store.refs.head()
    found: dict[str, list[str]] = {}
    for under, before in ((HEADS, ""), (TAGS, "tag: "), (REMOTES, "")):
        refs = store.refs.all(under)
        for name in sorted(refs, key=lambda name: (under + name != head, name)):
            found.setdefault(refs[name], []).append(("HEAD -> " if under + name == head else before) + name)
    return found


def plain(text: str) -> str:
    r"""Text of a stranger's commit without what could drive a terminal.

    >>> plain("nice\x1b[2J\u202e")
    'nice\\x1b[2J\\u202e'
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _heading(made: Commit, names: Mapping[str, Sequence[str]]) -> str:
    beside = f" ({', '.join(names[made.id])})" if made.id in names else ""
    lines = [f"commit {made.id}{beside}"]
    if len(made.parents) > 1:
        lines.append(f"merge  {' '.join(parent[:12] for parent in made.parents)}")
    if made.author:
        lines.append(f"author {plain(made.author)}")
    lines.append(f"date   {made.when:%Y-%m-%d %H:%M:%S} UTC\n")
    return "\n".join(lines + [f"    {plain(line)}" for line in made.message.split("\n")])


def _facts(made: Commit, names: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    return {
        "commit": made.id,
        "tree": made.tree,
        "content": made.content,
        "parents": made.parents,
        "message": made.message,
        "author": made.author,
        "time": made.when.isoformat(),
        "refs": list(names.get(made.id, ())),
    }


def show_version(what: str, *, as_json: bool) -> bool:
    """Say what a revision of the store here is, how it was made and what it changed; False where it is no revision."""
    store = None if Path(what).exists() else Store.find(Path.cwd())
    if store is None:
        return False
    try:
        made = store.load_commit(what)
    except RefError:
        return False
    trees = Trees(store.objects)
    tree = trees.load(made.tree)
    parent = store.load_commit(made.parents[0]) if made.parents else None
    older = Tree({}, None) if parent is None else trees.load(parent.tree)
    where = f"commit {made.id[:12]}"
    before, after, _ = trees.apart(older, tree, ("its parent", where))
    changed, files = tensor_changes(before, after), changes(older.files, tree.files)
    if as_json:
        whole = Whole(trees.parts(tree, where), where)
        specs = {name: whole.spec(name) for name in whole.names()}
        facts = {
            **_facts(made, _names(store)),
            "record": made.record,
            "bytes": sum(spec.nbytes for spec in specs.values()),
            "tensors": {name: {"dtype": spec.dtype, "shape": list(spec.shape)} for name, spec in specs.items()},
            "files": list(tree.files),
            "changed": {**changed, **files},
            **({"scores": scores} if (scores := scores_of(store, made.content)) else {}),
        }
        print(json.dumps(facts))
        return True
    print(_heading(made, _names(store)), end="\n\n")
    if made.record:
        print(yaml.safe_dump({"record": dict(made.record)}, sort_keys=False, width=120))
    print("holds, as a first version:" if parent is None else f"beside {parent.id[:12]} {plain(parent.message)}:")
    for name, how in changed.items():
        spec = (after if name in after else before).spec(name)
        print(f"  {how:<9} {spec.dtype:<5} {list(spec.shape)!s:<20} {name}")
    for path, how in files.items():
        print(f"  {how:<9} {path}")
    count = sum(len(entry.tensors) for entry in tree.files.values() if isinstance(entry, Weights))
    print(
        f"{len(changed)} tensors differ; {count} in all; {len(tree.files)} files of {tree.size:,} bytes; tree {made.tree}"
    )
    print("\n".join([f"content {made.content}", *score_lines(store, made.content)]))
    return True


def status(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that may have been changed.")] = Path(),
    rev: Annotated[str, typer.Option("--rev", help="The version it is set beside.")] = "HEAD",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Say which files of a folder, and which tensors in them, differ from a version."""
    store = here()
    made = store.load_commit(rev)
    memory = Remembered(cache_folder() / "ids")
    with shown() as progress:
        found = scan(folder, memory, threads=threads, progress=progress)
    memory.keep()
    told = compare(store.objects, load_tree(store.objects, made.tree), found)
    if as_json:
        print(json.dumps({"commit": made.id, "files": dict(told.files), "tensors": dict(told.tensors)}))
        return
    print(f"{folder} beside {rev}: {made.id[:12]} {plain(made.message)}")
    for name, how in told.files.items():
        print(f"  {how:<8} {name}")
    for name, how in told.tensors.items():
        print(f"  {how:<8} tensor {name}")
    if not told.files:
        print("nothing differs")


def branch(
    name: Annotated[str | None, typer.Argument(help="A branch; all are listed without one.")] = None,
    rev: Annotated[str | None, typer.Argument(help="Where it points; HEAD by default.")] = None,
    use: Annotated[bool, typer.Option("--use", help="Make it the one that commits and merges go to.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Move it, or delete it, although something is lost.")] = False,
    delete: Annotated[bool, typer.Option("--delete", help="Remove it.")] = False,
    rename: Annotated[str | None, typer.Option("--rename", metavar="NEW", help="Give it another name.")] = None,
) -> None:
    """List branches; make, move, rename or remove one, or make it the current one."""
    store = here()
    if sum((use, delete, rename is not None)) > 1 or (name is None and (use or delete or rename or force)):
        raise StoreError("one branch and one thing to do with it", expected="NAME, and --use, --delete or --rename")
    if name is None:
        head = store.refs.head()
        for known, commit in store.branches().items():
            print(f"{commit[:12]} {known}" + (" (HEAD)" if HEADS + known == head else ""))
        return
    if rev is not None and (delete or rename is not None):
        raise StoreError("a revision is only for a branch that is made or moved", got=rev)
    if delete:
        print(f"{delete_branch(store, name, force=force)[:12]} was {name}")
        return
    if rename is not None:
        rename_branch(store, name, rename)
        name = rename
    elif force:
        move_branch(store, name, rev or "HEAD")
    elif rev is not None or not (use and name in store.branches()):
        store.branch(name, rev or "HEAD")
    if use:
        use_branch(store, name)
    print(f"{store.resolve(HEADS + name)[:12]} {name}")


def tag(
    name: Annotated[str | None, typer.Argument(help="A tag to make; all are listed without it.")] = None,
    rev: Annotated[str, typer.Argument(help="Where it points.")] = "HEAD",
    delete: Annotated[bool, typer.Option("--delete", help="Remove it.")] = False,
) -> None:
    """List tags, make one, or remove one."""
    store = here()
    if name is None:
        for known, commit in store.tags().items():
            print(f"{commit[:12]} {known}")
    elif delete:
        commit_ = store.resolve(TAGS + check_ref_name(name))
        store.update_ref(TAGS + name, None, expect=commit_)
        print(f"{commit_[:12]} was {name}")
    else:
        print(f"{store.tag(name, rev)[:12]} {name}")


def checkout(
    rev: Annotated[str, typer.Argument(help="What to write: main, a tag, main~2, an id.")],
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="New, empty, or with an unchanged version of this store in it.")
    ],
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace a folder with other things in it, which are lost.")
    ] = False,
    threads: Threads = None,
) -> None:
    """Write a version into a folder, every byte as it was."""
    memory = Remembered(cache_folder() / "ids")
    with shown() as progress:
        here().checkout(rev, folder, replace=replace, memory=memory, threads=threads, progress=progress)
    print(f"{rev} in {folder}")
