"""Bringing what manifests name to the remote that git's configuration names, and back.

There, each version is a branch `git/TREE` of one commit that follows from the manifest alone. So the remote is a store like
any other (its gc keeps what is shared), two pushes cannot be in each other's way, and what is fetched is exactly what is
needed, without a list of what there is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ...errors import CofuseError, CorruptError, StoreError
from ...progress import SILENT, Progress
from ..canonical import canonical
from ..commits import put_commit
from ..envelope import Head
from ..receiving import Receiving
from ..trees import load_tree
from ..writing import Writing, writing
from . import roots
from .manifest import MAX_MANIFEST, Manifest
from .repository import Repository, run_git

BRANCH = "refs/heads/git/"
_THREADS = 8
_ASK = "say where to fetch it from: git config cofuse.remote FOLDER_OR_BUCKET"


def missing(repository: Repository, manifests: Iterable[Manifest]) -> list[Manifest]:
    """Those that are not here whole."""
    return [manifest for manifest in manifests if not _whole(repository, manifest.tree)]


def ensure(repository: Repository, manifests: Iterable[Manifest], progress: Progress = SILENT) -> None:
    """Have all parts of these versions here.

    Raises:
        StoreError: one is missing, and there is no remote, or it cannot be reached.
        CorruptError: it is missing there too, or damaged.
    """
    wanted = missing(repository, manifests)
    if not wanted:
        return
    remote = repository.remote()
    if remote is None:
        where, got = repository.store.path, f"no tree {wanted[0].tree}"
        raise CorruptError("the store does not have this version", where=where, got=got, hint=_ASK)
    from ..remotes.moving import _receive

    store = repository.store
    commits = [_commit_id(manifest) for manifest in wanted]
    with store.objects.places.staged() as folder:
        pen = Writing(store.objects, folder)
        try:
            _receive(store, remote, commits, pen, folder, _THREADS, progress)
        except CorruptError as error:
            hint = "was it pushed? cofuse git push, where it was added"
            raise CorruptError(
                "the remote does not have this version whole", where=remote.name, got=error.line, hint=hint
            ) from None
        trees = {manifest.tree: load_tree(store.objects, manifest.tree) for manifest in wanted}
        # Of a tree that was here with a part missing, nothing has been asked for yet.
        lost = [part for tree in trees.values() for part in tree.objects() if part not in store.objects]
        Receiving(store.objects, pen, folder, remote).receive(lost, threads=_THREADS)
        pen.sync()
        for tree_id, tree in trees.items():
            roots.keep(store.objects.places, tree_id, tree)


def share(repository: Repository, manifests: Sequence[Manifest], progress: Progress = SILENT) -> None:
    """Bring versions to the remote; those that are there are not sent again.

    Raises:
        StoreError: there is no remote, or it cannot be reached or written.
        CorruptError: a version is not here whole.
    """
    from ..remotes.moving import Push, push

    remote = repository.remote()
    if remote is None:
        raise StoreError("there is no remote", where=repository.common, hint=_ASK.replace("fetch it from", "push to"))
    store = repository.store
    with writing(store.objects) as pen:
        wanted = [
            Push(
                BRANCH + m.tree,
                put_commit(pen, store.objects, **_commit(m)).id,  # type: ignore[arg-type]
            )
            for m in manifests
        ]
        pen.sync()
        push(store, remote, wanted, threads=_THREADS, progress=progress)


def named(*revisions: str) -> list[Manifest]:
    """The manifests among the blobs that git reaches from some revisions, as `git rev-list` takes them."""
    listed = run_git(
        "rev-list", "--objects", "--no-object-names", f"--filter=blob:limit={MAX_MANIFEST + 1}", *revisions
    )
    return _manifests(listed)


def named_by_any() -> list[Manifest]:
    """The manifests among all blobs that git has, reached or not."""
    form = "--batch-check=%(objecttype) %(objectsize) %(objectname)"
    lines = run_git("cat-file", "--batch-all-objects", "--unordered", form).split(b"\n")
    rows = (line.split() for line in lines if line.startswith(b"blob"))
    return _manifests(b"".join(name + b"\n" for _, size, name in rows if int(size) <= MAX_MANIFEST))


def _manifests(names: bytes) -> list[Manifest]:
    raw, at = run_git("cat-file", "--batch", given=names), 0
    found: dict[Manifest, None] = {}
    while at < len(raw):
        end = raw.index(b"\n", at)
        match raw[at:end].split():
            case [_, kind, size]:
                at = end + 1 + int(size) + 1
                if kind == b"blob" and int(size) <= MAX_MANIFEST:
                    try:
                        manifest = Manifest.parse(raw[end + 1 : at - 1], "git")
                    except CofuseError:
                        continue  # names nothing
                    if manifest is not None:
                        found[manifest] = None
            case _:  # missing: a shallow or partial clone
                at = end + 1
    return list(found)


def _whole(repository: Repository, tree: str) -> bool:
    objects = repository.store.objects
    try:
        return all(part in objects for part in load_tree(objects, tree).objects())
    except CofuseError:
        return False


def _commit(manifest: Manifest) -> dict[str, object]:
    return {
        "author": "",
        "content": manifest.content,
        "message": "a version in a git repository",
        "parents": [],
        "record": {},
        "tree": manifest.tree,
    }


def _commit_id(manifest: Manifest) -> str:
    from blake3 import blake3

    data = canonical(_commit(manifest), "record")
    return Head("commit", len(data)).id([blake3(data).digest()])
