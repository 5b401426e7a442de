"""Pushing, fetching, pulling, cloning: objects first, then trees, then commits, and the refs last.

So a kill at any point leaves both stores whole, and the same command goes on where it was: what is there is not sent
again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from ...errors import RefError, StoreError
from ...progress import SILENT, Progress
from ..ancestry import is_ancestor
from ..commits import Commit, load_commit
from ..places import FOLDER
from ..receiving import Receiving
from ..refs import HEADS, REMOTES, TAGS, check_ref_name
from ..store import Store
from ..trees import Tree, Weights, load_tree
from ..writing import Writing
from .apart import Antechamber, Outfit
from .missing import loader, new_commits, parents_first, sizes_of
from .remote import Move, Remote
from .settings import DEFAULT, Named, Settings, check_remote_name

THREADS = 8  # of which most wait for the network


@dataclass(frozen=True, slots=True)
class Moved:
    """A ref that was looked at: its full name there, where it was, where it is now."""

    ref: str
    old: str | None
    new: str


@dataclass(frozen=True, slots=True)
class Push:
    """What is pushed: a ref's full name and a commit; `force` moves it also where that loses what was there.

    Forcing still names what is lost: where the ref was when it was last seen, or (None) nothing.
    """

    ref: str
    commit: str
    force: bool = False


def push(
    store: Store,
    remote: Remote,
    wanted: Sequence[Push],
    *,
    name: str | None = None,
    threads: int | None = None,
    progress: Progress = SILENT,
) -> list[Moved]:
    """Bring commits, and all that they need, to another store, and move its refs.

    Args:
        store: from where.
        remote: to where; a store is made there if there is none.
        wanted: the refs to move.
        name: what the remote is called here: `refs/remotes/NAME/...` then says where its branches are.
        threads: how many.
        progress: told of every byte.

    Raises:
        RefError: the remote's ref has what is not here, or has moved meanwhile; no ref was moved by this.
        StoreError: the remote cannot be reached or written. What was delivered stays, so that trying again is quick.
        CorruptError: what is to be pushed is damaged here.
    """
    workers = threads or THREADS
    if not remote.exists():
        # Its HEAD, which a clone starts on: the branch that ours names, where that is among them.
        branches = [p.ref for p in wanted if p.ref.startswith(HEADS)] or [f"{HEADS}main"]
        remote.make(own if (own := store.refs.head()) in branches else branches[0])
    there = remote.refs()
    moves = [p for p in wanted if there.get(p.ref) != p.commit]
    expected = {p.ref: _may_move(store, p, there.get(p.ref), name) for p in moves}
    with _delivered(store, remote, [p.commit for p in moves], there.values(), workers, progress):
        remote.update([Move(p.ref, p.commit, expected[p.ref]) for p in moves])
    for p in wanted:
        if name is not None and p.ref.startswith(HEADS):
            store.refs.update(_tracking(name, p.ref), p.commit)
    return [Moved(p.ref, there.get(p.ref), p.commit) for p in wanted]


def deliver(
    store: Store,
    remote: Remote,
    commits: Sequence[str],
    *,
    had: Iterable[str] | None = None,
    threads: int | None = None,
    progress: Progress = SILENT,
) -> None:
    """Bring commits, and all that they need, to another store that is there, and move nothing; see `push`.

    Args:
        store: from where.
        remote: to where.
        commits: which.
        had: commits that are known to be there; asked for when None.
        threads: how many.
        progress: told of every byte.
    """
    known = remote.refs().values() if had is None else had
    with _delivered(store, remote, commits, known, threads or THREADS, progress):
        pass


@contextmanager
def _delivered(
    store: Store, remote: Remote, tips: Sequence[str], had: Iterable[str], workers: int, progress: Progress
) -> Iterator[None]:
    """Bring commits, and all that they need; for the block, nothing clears them away there."""
    with ExitStack() as held, store.objects.places.staged() as folder, remote.delivering() as delivery:
        for tip in tips:
            held.enter_context(store.objects.leases.held(tip))  # a branch may be removed here meanwhile
        commits = {c.id: c for c in new_commits(loader(store.objects), tips, had)}
        trees = dict.fromkeys(c.tree for c in commits.values())
        on_remote = remote.has([*commits, *trees, *tips], threads=workers)
        sizes: dict[str, int] = {}
        for tree_id in trees:
            if tree_id not in on_remote:
                sizes |= sizes_of(store.objects, f"tree {tree_id}", load_tree(store.objects, tree_id))
        on_remote |= remote.has(list(sizes), threads=workers)
        phases = [[i for i in ids if i not in on_remote] for ids in (sizes, trees, commits)]
        sent = [i for phase in phases for i in phase]
        objects = Outfit(store.objects, folder, _strangers(store, remote, sent, workers))
        delivery.rely_on(on_remote)
        bar = progress.bar("pushing", sum(sizes[i] for i in phases[0]), "B")
        for phase in phases[:2]:
            delivery.put(objects, phase, threads=workers, sizes=sizes, advance=bar.advance)
            delivery.sync()
        delivery.put_commits(objects, phases[2], threads=workers)
        delivery.sync()
        yield


def _may_move(store: Store, p: Push, now: str | None, name: str | None) -> str | None:
    """What the remote's ref must be when it is moved.

    Raises:
        RefError: moving it would lose what is there.
    """
    if p.force and p.ref.startswith(HEADS) and name is not None:
        seen = store.refs.get(_tracking(name, p.ref))
        if now is not None and now != seen:
            raise RefError(
                "the remote's branch is not where it was last seen, so that forcing would lose unseen work",
                where=p.ref,
                got=now,
                expected=seen or "no such branch",
                hint="look at it first: cofuse fetch",
            )
    if now is None or p.force:
        return now
    if p.ref.startswith(TAGS):
        raise RefError("the remote has that tag elsewhere", where=p.ref, got=now, expected=p.commit)
    if now not in store.objects or not is_ancestor(store.objects, now, p.commit):
        raise RefError(
            "the remote's branch has what yours has not",
            where=p.ref,
            got=now,
            hint="get it first: cofuse pull; or lose it: cofuse push --force",
        )
    return now


def _strangers(store: Store, remote: Remote, sent: Sequence[str], workers: int) -> list[str]:
    """Those that are kept as deltas against what is neither sent nor there."""
    bases = {i: base for i in sent if (base := store.objects.envelope(i).base) is not None}
    asked = set(bases.values()).difference(sent)
    known = remote.has(sorted(asked), threads=workers).union(sent)
    return [i for i, base in bases.items() if base not in known]


def fetch(
    store: Store,
    remote: Remote,
    name: str,
    *,
    branches: Iterable[str] | None = None,
    threads: int | None = None,
    progress: Progress = SILENT,
) -> list[Moved]:
    """Bring a remote's branches to `refs/remotes/NAME/...`, its tags to `refs/tags/...`, and all that they need.

    Args:
        store: to where.
        remote: from where.
        name: what the remote is called here.
        branches: which; all when None. Tags come with all branches only.
        threads: how many.
        progress: told of every byte.

    Returns:
        the refs here. A tag that is elsewhere here is left as it is, and not among them.

    Raises:
        CorruptError: what arrived is not what its id says, or cannot be kept safely; no ref was moved.
        RefError: the remote has no such branch, or a ref whose name is not allowed.
        StoreError: the remote cannot be reached, or the store cannot be written. What arrived stays.
    """
    check_remote_name(name)
    if not remote.exists():
        raise StoreError("there is no store", where=remote.name, hint="the first push makes one")
    wanted = _wanted(store, remote, name, branches, progress)
    tips = list(dict.fromkeys(wanted.values()))
    workers = threads or THREADS
    with store.objects.places.staged() as folder:
        pen = Writing(store.objects, folder)
        _receive(store, remote, tips, pen, folder, workers, progress)
        pen.sync()
        moved = []
        for ref, commit in wanted.items():
            moved.append(Moved(ref, store.refs.get(ref), commit))
            store.refs.update(ref, commit)
    return moved


def receive(
    store: Store,
    remote: Remote,
    commits: Iterable[str] = (),
    *,
    trees: Iterable[str] = (),
    threads: int | None = None,
    progress: Progress = SILENT,
) -> None:
    """Bring commits with their history, and trees, with all that they need, to no ref: `gc` may take them again.

    Raises:
        CorruptError: see `fetch`.
        StoreError: see `fetch`.
    """
    with store.objects.places.staged() as folder:
        pen = Writing(store.objects, folder)
        _receive(store, remote, list(commits), pen, folder, threads or THREADS, progress, list(trees))
        pen.sync()


def _wanted(
    store: Store, remote: Remote, name: str, branches: Iterable[str] | None, progress: Progress
) -> dict[str, str]:
    """The refs here, and the commits they shall point to."""
    there = remote.refs()
    wanted: dict[str, str] = {}
    for branch in branches or ():
        if (commit := there.get(HEADS + check_ref_name(branch))) is None:
            raise RefError("the remote has no such branch", where=remote.name, got=ascii(branch[:80]))
        wanted[_tracking(name, HEADS + branch)] = commit
    if branches is not None:
        return wanted
    for ref, commit in there.items():
        if ref.startswith(HEADS):
            wanted[_tracking(name, ref)] = commit
        elif (here := store.refs.get(ref)) not in (None, commit):
            progress.say(f"{ref} is {here} here and {commit} there; it is left as it is")
        else:
            wanted[ref] = commit
    return wanted


def _receive(
    store: Store,
    remote: Remote,
    tips: Sequence[str],
    pen: Writing,
    folder: Path,
    workers: int,
    progress: Progress,
    more: Sequence[str] = (),
) -> None:
    """Take commits and all that they need, everything before what needs it."""
    arriving = Antechamber(store.objects, pen, folder / "antechamber", remote)
    commits: dict[str, Commit] = {}
    waiting = list(tips)
    bar = progress.bar("looking at what is new", 0, "commits")
    while waiting := [i for i in dict.fromkeys(waiting) if i not in store.objects and i not in commits]:
        arriving.receive(waiting, workers)
        for commit_id in waiting:
            commits[commit_id] = load_commit(arriving, commit_id)
            bar.advance()
        waiting = [parent for commit_id in waiting for parent in commits[commit_id].parents]
    trees = [i for i in dict.fromkeys([*more, *(c.tree for c in commits.values())]) if i not in store.objects]
    arriving.receive(trees, workers)
    sizes: dict[str, int] = {}
    headers: dict[str, None] = {}
    for tree_id in trees:
        tree = load_tree(arriving, tree_id)
        mine = _headers(tree)
        arriving.receive(mine, workers)
        headers.update(dict.fromkeys(mine))
        sizes |= sizes_of(arriving, f"tree {tree_id}", tree)
    missing = []
    for object_id in sizes:
        if object_id in store.objects:
            pen.rely_on(object_id)
        elif object_id not in headers:
            missing.append(object_id)
    bar = progress.bar("fetching", sum(sizes[i] for i in missing), "B")
    Receiving(store.objects, pen, folder, remote).receive(missing, threads=workers, sizes=sizes, advance=bar.advance)
    pen.sync()
    arriving.let_in(list(headers), workers)
    arriving.let_in(trees, workers)
    pen.sync()
    known = {*tips, *(parent for c in commits.values() for parent in c.parents)}.difference(commits)
    for commit_id in known:
        pen.rely_on(commit_id)
    arriving.let_in([c.id for c in parents_first(commits)], workers)


def _headers(tree: Tree) -> list[str]:
    return list(dict.fromkeys(entry.header for entry in tree.files.values() if isinstance(entry, Weights)))


def _tracking(name: str, ref: str) -> str:
    return f"{REMOTES}{name}/{ref.removeprefix(HEADS)}"


def clone(
    remote: Remote,
    folder: Path,
    settings: Named,
    *,
    branch: str | None = None,
    threads: int | None = None,
    progress: Progress = SILENT,
) -> Store:
    """Make a store that has all that another has; a clone that was cut short is gone on with.

    Args:
        remote: the other.
        folder: new or empty, or where an earlier attempt was cut short.
        settings: how the remote is kept, under the name `origin`.
        branch: the branch that HEAD names; the remote's HEAD's when None.
        threads: how many.
        progress: told of every byte.

    Raises:
        StoreError: there is no store there, or another one here.
        CorruptError: see `fetch`; the same command goes on once it is mended.
    """
    if not remote.exists():
        raise StoreError("there is no store", where=remote.name, hint="the first push makes one")
    head = remote.head() if branch is None else HEADS + check_ref_name(branch)
    here = Store.open(folder) if (folder / FOLDER / "format").is_file() or (folder / "format").is_file() else None
    # An attempt may have been cut short before its store knew whose clone it is.
    if here is not None and (here.branches() or Settings(here.objects.places).all().get(DEFAULT, settings) != settings):
        raise StoreError("there is a store already", where=here.path, hint="cofuse fetch, in there, gets what is new")
    store = here or Store.init(folder)
    Settings(store.objects.places).add(DEFAULT, settings)
    fetch(store, remote, DEFAULT, threads=threads, progress=progress)
    tip = store.refs.get(_tracking(DEFAULT, head))
    if tip is None and branch is not None:
        raise RefError("the remote has no such branch", where=remote.name, got=ascii(branch[:80]))
    store.refs.point_head(head)
    if tip is not None:  # else it is empty
        store.refs.update(head, tip, expect=None)
    return store


def pull(
    store: Store,
    remote: Remote,
    name: str,
    branch: str,
    *,
    threads: int | None = None,
    progress: Progress = SILENT,
) -> tuple[str, str | None]:
    """Fetch a branch, and move ours to it if ours has nothing of its own.

    Returns:
        the commit that is theirs, and the one that ours is at now: None where both have something of their own, so that
        they must be merged.
    """
    fetch(store, remote, name, branches=[branch], threads=threads, progress=progress)
    theirs = store.refs.get(_tracking(name, HEADS + branch)) or ""
    ours = store.refs.get(HEADS + branch)
    if ours is None or is_ancestor(store.objects, ours, theirs):
        store.refs.update(HEADS + branch, theirs, expect=ours)
        return theirs, theirs
    return theirs, ours if is_ancestor(store.objects, theirs, ours) else None
