"""Versions as Hugging Face's clients know them: 40 digits of a commit's id, files large and small, and their ids."""

from __future__ import annotations

import hashlib
import re
import threading
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ...errors import CorruptError, RefError
from ...store import Store
from ...store.commits import Commit, load_commit
from ...store.refs import HEADS, PULLS
from ...store.trees import Tree, Weights, load_tree
from ..database import Repository
from ..faults import Invalid, NoFile, NoRevision
from ..files import Entry, Files, git_blob, is_large
from ..frontmatter import front_matter, read_card
from ..hub import Hub

DIGITS = 40  # of a commit's id that clients are told: they know ids as git has them
DEFAULT = "main"
_FULL = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_REMEMBERED = 64  # versions: their trees are what costs


class Empty(NoRevision):
    """The main branch of a new repository, in which clients expect no files rather than no branch."""


def short(commit_id: str) -> str:
    """A commit's id as clients are told it.

    >>> len(short("0" * 64))
    40
    """
    return commit_id[:DIGITS]


@dataclass(frozen=True)
class Version:
    """A commit of a repository, and its files.

    Attributes:
        store: where it is kept.
        cache: files that are on the disk.
        commit: which.
    """

    store: Store
    cache: Files
    commit: Commit

    @cached_property
    def tree(self) -> Tree:
        """Its files."""
        return load_tree(self.store.objects, self.commit.tree)

    @property
    def sha(self) -> str:
        """Its id, as clients are told it."""
        return short(self.commit.id)

    def entry(self, path: str) -> Entry:
        """One of its files.

        Raises:
            NoFile: there is none of that name.
        """
        found = self.tree.files.get(path)
        if found is None:
            raise NoFile("no such file in this version", got=ascii(path[:200]))
        return found

    def tag(self, path: str, entry: Entry) -> str:
        """What its bytes are known by: SHA-256 of a large file, git's SHA-1 of a small one."""
        if isinstance(entry, Weights) or is_large(path, entry.size):
            with self.store.objects.leases.held(self.commit.tree):
                return self.cache.sha256(self.store, entry)
        return self.cache.git_sha1(self.store, entry)

    def place(self, entry: Entry) -> Path:
        """One of its files, on the disk for the next minute."""
        with self.store.objects.leases.held(self.commit.tree):
            return self.cache.file(self.store, entry)[0]

    def item(self, path: str, entry: Entry) -> dict[str, Any]:
        """A file as a row of a listing."""
        tag = self.tag(path, entry)
        row: dict[str, Any] = {"type": "file", "path": path, "size": entry.size, "oid": tag}
        if is_large(path, entry.size):
            pointer = pointer_of(tag, entry.size)
            row |= {"oid": git_blob(pointer), "lfs": {"oid": tag, "size": entry.size, "pointerSize": len(pointer)}}
        return row

    @property
    def card(self) -> str:
        """What its README says; empty where there is none that can be read."""
        try:
            return read_card(self.store.objects, self.tree)
        except CorruptError:
            return ""

    @cached_property
    def front(self) -> dict[str, Any]:
        """The values that its card begins with; none where they cannot be read."""
        try:
            return front_matter(self.card)
        except Invalid:
            return {}

    @cached_property
    def folders(self) -> dict[str, str]:
        """Folders that its files are in, and an id of each, made of what is in it."""
        found: dict[str, Any] = {}
        for path, entry in sorted(self.tree.files.items()):
            folder = path.rpartition("/")[0]
            while folder:
                found.setdefault(folder, hashlib.sha1()).update(f"{path} {entry}\n".encode())
                folder = folder.rpartition("/")[0]
        return {folder: digest.hexdigest() for folder, digest in found.items()}

    def folder(self, path: str) -> dict[str, Any]:
        """A folder as a row of a listing."""
        return {"type": "directory", "path": path, "size": 0, "oid": self.folders[path]}


def pointer_of(sha256: str, size: int) -> bytes:
    """What git-lfs keeps in git of a large file."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


class Versions:
    """Versions that were asked for lately; a commit never changes, so neither does what is remembered of it."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, str], Version] = OrderedDict()
        self._named: OrderedDict[tuple[str, str], str] = OrderedDict()
        self._guard = threading.Lock()

    def get(self, hub: Hub, repository: Repository, revision: str) -> Version:
        """The version that a branch, a tag, `refs/pr/3` or an id of 40 or 64 digits (or its first four) names.

        Raises:
            NoRevision: it names nothing.
        """
        store = hub.store(repository)
        commit = self._commit(store, repository, revision)
        with self._guard:
            found = self._kept.get((repository.key, commit))
            if found is not None:
                self._kept.move_to_end((repository.key, commit))
                return found
        found = Version(store, hub.files, load_commit(store.objects, commit))
        with self._guard:
            self._kept[repository.key, commit] = found
            while len(self._kept) > _REMEMBERED:
                self._kept.popitem(last=False)
        return found

    def _commit(self, store: Store, repository: Repository, revision: str) -> str:
        if not _FULL.fullmatch(revision):
            return resolved(store, revision)
        # An id stays what it is; looking for one among all of a store's takes long.
        key = (repository.key, revision)
        with self._guard:
            found = self._named.get(key)
        if found is None:
            found = resolved(store, revision)
            with self._guard:
                self._named[key] = found
                while len(self._named) > 16 * _REMEMBERED:
                    self._named.popitem(last=False)
        return found


def resolved(store: Store, revision: str) -> str:
    """The commit that a revision names.

    Raises:
        NoRevision: it names nothing.
    """
    try:
        if revision.startswith((HEADS, PULLS)):
            found = store.refs.get(revision)
            if found is not None:
                return found
        if revision == DEFAULT and (main := store.refs.get(store.refs.head())) is not None:
            return store.refs.get(HEADS + DEFAULT) or main  # clients know no other name for it
        return store.resolve(revision)
    except RefError as error:
        if revision == DEFAULT and not store.branches():
            raise Empty("nothing has been committed yet", got=revision) from None
        raise NoRevision("no such branch, tag or commit", got=ascii(revision[:200]), hint=error.hint) from None


VERSIONS = Versions()
