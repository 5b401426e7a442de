"""Version control for checkpoints, in one folder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from types import EllipsisType
from typing import Any

from ..checkpoint import Checkpoint
from ..checkpoint.remembered import Remembered
from ..errors import CofuseError, StoreError
from ..progress import SILENT, Progress
from .adding import Known, add
from .checkout import write_tree
from .checkpoint import StoreCheckpoint
from .collecting import GRACE_DAYS, Collected, collect, refusing_damage
from .commits import Commit, history, load_commit, put_commit
from .fsck import Health, check
from .objects import ID, Objects
from .packing import Packed, pack
from .places import FOLDER, FORMAT, Places, explained, make_folder
from .refs import HEADS, TAGS, Refs, check_ref_name
from .revs import resolve
from .sha256 import file_sha256
from .status import held
from .trees import load_tree
from .writing import Writing, writing


class Store:
    """A store that is there; made by `Store.init`, opened by `Store.open` or `Store.find`.

    >>> import tempfile, torch
    >>> from cofuse.checkpoint import Memory
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     store = Store.init(Path(folder))
    ...     first = store.commit(Memory({"w": torch.zeros(2)}), message="start")
    ...     second = store.commit(Memory({"w": torch.ones(2)}), message="better")
    ...     [c.message for c in store.log("main")], store.checkpoint("main~1").read("w").tolist()
    (['better', 'start'], [0.0, 0.0])
    """

    def __init__(self, places: Places) -> None:
        self._places = places
        self.objects = Objects(places)
        self.refs = Refs(places)

    @property
    def path(self) -> Path:
        """The store's own folder."""
        return self._places.root

    def __repr__(self) -> str:
        return f"Store({str(self.path)!r})"

    # Making and finding

    @classmethod
    def init(cls, folder: str | Path) -> Store:
        """Make a store in `folder`, under `.cofuse`; a folder whose name ends in `.cofuse` is the store itself.

        One that is there is opened.

        Raises:
            StoreError: it cannot be made there, or something else is in the way.
        """
        root = _root(Path(folder))
        places = Places(root)
        if _format(root):
            return cls.open(root)
        with explained(root):
            if root.is_dir() and {p.name for p in root.iterdir()} - {"refs", "objects", "tmp", "HEAD", "partial"}:
                raise StoreError("the folder holds other things", where=root, expected="a new or empty folder")
            make_folder(root)
            for below in (places.objects, places.staging, places.refs / "heads", places.refs / "tags"):
                make_folder(below)
            places.replace(places.head, f"ref: {HEADS}main\n".encode())
            # Last, because a folder is a store from this file on.
            places.replace(places.format, FORMAT)
        return cls.open(root)

    @classmethod
    def open(cls, folder: str | Path) -> Store:
        """Open the store in a folder, or the folder that is one.

        Raises:
            StoreError: there is none, or one of a later format.
        """
        for root in (Path(folder) / FOLDER, Path(folder)):
            found = _format(root)
            if found is not None and found != FORMAT:
                raise StoreError(
                    "a store of another format",
                    where=root,
                    got=ascii(found[:40]),
                    expected=ascii(FORMAT),
                    hint="a later version of cofuse made it: install that",
                )
            if found is not None:
                return cls(Places(root.resolve()))
        raise StoreError("no store here", where=folder, hint="make one: cofuse init")

    @classmethod
    def find(cls, start: str | Path) -> Store | None:
        """The store of a folder or of the nearest folder above it that has one."""
        here = Path(start).absolute()
        for folder in (here, *here.parents):
            if _format(folder / FOLDER) or _format(folder):
                return cls.open(folder)
        return None

    # Keeping

    def commit(
        self,
        source: Checkpoint | str | Path,
        *,
        message: str,
        branch: str | None = None,
        author: str = "",
        record: Mapping[str, Any] | None = None,
        parents: Sequence[str] | None = None,
        expect: str | EllipsisType | None = ...,
        threads: int | None = None,
        progress: Progress = SILENT,
    ) -> Commit:
        """Keep a version and move a branch to it; it lasts once this returns.

        Args:
            source: a folder, kept with every byte of every file; or a checkpoint, kept as its `save` would write it
                into one file. A lazy one (a fuse) is computed as it is stored.
            message: what is new.
            branch: the branch to move, made where there is none; the one that HEAD names when None.
            author: who did it.
            record: how it was made, as JSON; it is hashed, so it holds no times.
            parents: revisions this comes after; the branch's tip when None.
            expect: where the branch must be when it is moved (None: nowhere yet); where it was at the start of this
                call when left out.
            threads: how many; the processor's number when None. The ids do not depend on it.
            progress: told of every chunk.

        Raises:
            RefError: the branch has moved meanwhile. What was stored stays, so that trying again is quick.
            StoreError: the source cannot be kept, or the store cannot be written.
            CheckpointError: the source cannot be read.
        """
        ref = self.refs.head() if branch is None else HEADS + check_ref_name(branch)
        tip = self.refs.get(ref)
        after = ([tip] if tip else []) if parents is None else [self.resolve(rev) for rev in parents]
        with writing(self.objects, threads) as pen:
            for parent in after:
                pen.rely_on(parent)
            tree_id = self._add(pen, source, after, threads, progress)
            commit = put_commit(
                pen,
                self.objects,
                tree=tree_id,
                content=load_tree(self.objects, tree_id).content,
                parents=after,
                message=message,
                author=author,
                record=record or {},
            )
            pen.sync()
            # Before this writer is done, because until then `gc` leaves what it wrote and what it relied on.
            self.refs.update(ref, commit.id, expect=tip if expect is ... else expect)
        return commit

    def add(
        self,
        source: Checkpoint | str | Path,
        *,
        like: str | None = None,
        threads: int | None = None,
        progress: Progress = SILENT,
    ) -> str:
        """Keep a folder or a checkpoint without a commit; gives the id of its tree.

        Args:
            source: see `commit`.
            like: a revision that it has most tensors in common with, which saves work.
            threads: how many.
            progress: told of every chunk.

        Raises:
            StoreError: see `commit`.
        """
        with writing(self.objects, threads) as pen:
            tree_id = self._add(pen, source, [] if like is None else [self.resolve(like)], threads, progress)
            pen.sync()
        return tree_id

    def _add(
        self,
        pen: Writing,
        source: Checkpoint | str | Path,
        like: Sequence[str],
        threads: int | None,
        progress: Progress,
    ) -> str:
        trees = []
        for commit in like:
            with contextlib.suppress(CofuseError):  # a damaged version must not keep a good one from being stored
                trees.append(load_commit(self.objects, commit).tree)
        known = Known.of(self.objects, trees)
        what = Path(source) if isinstance(source, str | os.PathLike) else source
        return add(pen, self.objects, what, known, threads=threads, progress=progress)

    # Reading

    def resolve(self, rev: str) -> str:
        """The id of the commit that `main`, `v1`, `1f3a9c`, `main~2`, `HEAD^`, ... names.

        Raises:
            RefError: it names nothing, or more than one thing.
        """
        return resolve(rev, self.objects, self.refs)

    def load_commit(self, rev: str) -> Commit:
        """A commit, by id or by any other name.

        Raises:
            RefError: it names nothing, or more than one thing.
            CorruptError: the commit is damaged.
        """
        return load_commit(self.objects, self.resolve(rev))

    def tree(self, tree_or_rev: str) -> str:
        """The id of the tree of a revision; a tree's own id names itself."""
        if (
            ID.fullmatch(tree_or_rev)
            and tree_or_rev in self.objects
            and self.objects.envelope(tree_or_rev).head.kind == "tree"
        ):
            return tree_or_rev
        return self.load_commit(tree_or_rev).tree

    def checkpoint(self, tree_or_rev: str) -> StoreCheckpoint:
        """Open what is stored as a checkpoint; nothing but headers is read.

        Raises:
            RefError: the revision names nothing.
            StoreError: the version holds no safetensors weights.
        """
        return StoreCheckpoint(self.objects, self.tree(tree_or_rev), f"{self.path}#{tree_or_rev}")

    def log(self, rev: str = "HEAD", limit: int | None = None) -> list[Commit]:
        """A revision and what came before it, newest first.

        Raises:
            RefError: it names nothing.
        """
        return list(islice(history(self.objects, self.resolve(rev)), limit))

    def checkout(
        self,
        tree_or_rev: str,
        folder: str | Path,
        *,
        replace: bool = False,
        memory: Remembered | None = None,
        threads: int | None = None,
        progress: Progress = SILENT,
    ) -> Path:
        """Write a version into a folder, every byte as it was; it appears whole or not at all.

        Args:
            tree_or_rev: a revision or a tree.
            folder: a new or empty one; or one that holds a version of this store and nothing else, whose files are used
                again as far as they are the same.
            replace: take the place of a folder that has other files in it, which are lost.
            memory: ids of files that were hashed before, for looking at what the folder holds.
            threads: how many.
            progress: told of every piece.

        Raises:
            StoreError: the folder is in use.
            CorruptError: something stored is damaged; nothing was written.
            CheckpointError: the folder cannot be written.
        """
        tree_id = self.tree(tree_or_rev)
        with self.objects.leases.held(tree_id):
            tree = load_tree(self.objects, tree_id)
            there = None if replace else held(self.objects, Path(folder), memory, threads=threads, progress=progress)
            write_tree(
                self.objects,
                tree,
                Path(folder),
                replace=replace or there is not None,
                reuse={} if there is None else there.alike(tree),
                threads=threads,
                progress=progress,
            )
        return Path(folder)

    def sha256(self, tree_or_rev: str, path: str) -> str:
        """The SHA-256 of a file of a version, as 64 hex digits; remembered once it was computed.

        Args:
            tree_or_rev: a revision or a tree.
            path: of the file, with `/` between its parts.

        Raises:
            StoreError: there is no such file in it.
            CorruptError: something stored is damaged.
        """
        tree_id = self.tree(tree_or_rev)
        with self.objects.leases.held(tree_id):
            entry = load_tree(self.objects, tree_id).files.get(path)
            if entry is None:
                where = f"{self.path}#{tree_or_rev}"
                raise StoreError("no such file in this version", where=where, got=ascii(path[:80]))
            return file_sha256(self.objects, entry)

    # Refs

    def branches(self) -> dict[str, str]:
        """Branches and the commits they point to, by name."""
        return self.refs.all(HEADS)

    def tags(self) -> dict[str, str]:
        """Tags and the commits they point to, by name."""
        return self.refs.all(TAGS)

    def branch(self, name: str, rev: str = "HEAD") -> str:
        """Make a branch at a revision; gives the commit.

        Raises:
            RefError: there is one elsewhere, or the name is not allowed.
        """
        return self._make(HEADS, name, rev)

    def tag(self, name: str, rev: str = "HEAD") -> str:
        """Make a tag at a revision; gives the commit. Tags do not move.

        Raises:
            RefError: there is one elsewhere, or the name is not allowed.
        """
        return self._make(TAGS, name, rev)

    def _make(self, under: str, name: str, rev: str) -> str:
        commit = self.resolve(rev)
        self.refs.update(under + check_ref_name(name), commit, expect=None)
        return commit

    def update_ref(self, ref: str, rev: str | None, *, expect: str | EllipsisType | None = ...) -> None:
        """Move, make or (with None) remove `refs/heads/...` or `refs/tags/...` by compare-and-swap; see `Refs.update`.

        Raises:
            RefError: it is not where it was expected to be.
        """
        self.refs.update(ref, None if rev is None else self.resolve(rev), expect=expect)

    # Upkeep

    def gc(
        self,
        *,
        packing: bool = True,
        grace_days: float = GRACE_DAYS,
        roots: Iterable[str] = (),
        dry_run: bool = False,
        threads: int | None = None,
        progress: Progress = SILENT,
    ) -> tuple[Packed, Collected]:
        """Remove what nobody needs (`collecting.collect`), and keep what is read most quick to read (`packing.pack`).

        Args:
            packing: whether anything is to be kept differently, which may take long the first time.
            grace_days: how long what nothing needs is kept.
            roots: ids of commits or trees that are kept as if a ref pointed to them.
            dry_run: only say what would go; nothing is packed.
            threads: how many.
            progress: told of what is looked at, packed and removed.

        Raises:
            CorruptError: the store is damaged; nothing was removed.
        """
        with refusing_damage():
            # First, because it may be called for want of room.
            done = collect(
                self.objects, self.refs, grace_days=grace_days, roots=roots, dry_run=dry_run, progress=progress
            )
            if not packing or dry_run:
                return Packed(0, 0), done
            return pack(self.objects, self.refs, threads=threads, progress=progress), done

    def fsck(self, *, threads: int | None = None, progress: Progress = SILENT) -> Health:
        """Read and verify everything that a ref reaches."""
        return check(self.objects, self.refs, threads=threads, progress=progress)


def _root(folder: Path) -> Path:
    return folder if folder.name.endswith(FOLDER) else folder / FOLDER


def _format(root: Path) -> bytes | None:
    try:
        found = (root / "format").read_bytes()
    except OSError:
        return None
    return found if found.startswith(b"cofuse store ") else None
