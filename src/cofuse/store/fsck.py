"""Is everything that the refs reach there, and whole? What is not is named, with every version and tensor it touches."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

from ..checkpoint import TensorSpec, for_each
from ..errors import CofuseError
from ..progress import SILENT, Progress
from .collecting import needs, read_ref
from .commits import Commit, load_commit
from .git.roots import roots
from .objects import Objects
from .refs import Refs
from .trees import Plain, Tree, load_checked_spec, load_header, load_plain, load_tree, load_weights


@dataclass(frozen=True, slots=True)
class Version:
    """A commit that damage touches: its id, its message (empty where it is the commit itself), and the refs it is in."""

    id: str
    message: str
    refs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Damage:
    """One thing that is wrong: the id of an object (or a ref's name), what it is, and what it touches.

    Touched are also what is kept as a delta against a damaged object, and what comes after a damaged commit: there the
    versions are those that name it as their parent.
    """

    id: str
    problem: str
    versions: tuple[Version, ...] = ()
    parts: tuple[str, ...] = ()  # "PATH" for a file, "PATH: NAME" for a tensor


@dataclass(frozen=True, slots=True)
class Health:
    """What was looked at, and what was found damaged."""

    commits: int
    objects: int
    bytes: int
    damaged: tuple[Damage, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is damaged."""
        return not self.damaged


def check(objects: Objects, refs: Refs, *, threads: int | None = None, progress: Progress = SILENT) -> Health:
    """Read and verify every object that a ref reaches, and what they are deltas against."""
    found = _Check(objects, refs)
    found.walk()
    found.verify(threads or os.cpu_count() or 1, progress)
    found.compare()
    return Health(len(found.commits), len(found.bases), found.bytes, tuple(found.damage()))


class _Check:
    """One check under way."""

    def __init__(self, objects: Objects, refs: Refs) -> None:
        self.objects = objects
        self.refs = refs
        self.tips: dict[str, str] = {}  # ref -> commit
        self.commits: dict[str, Commit | None] = {}  # None for one that cannot be read
        self.trees: dict[str, list[Commit]] = {}
        self.bases: dict[str, str | None] = {}  # everything reached -> what it is a delta against
        self.failed: dict[str, str] = {}  # what could not be read whole
        self.lies: dict[str, str] = {}  # what can be read, and does not fit the rest
        self.bytes = 0

    def walk(self) -> None:
        """Find everything that has to be there."""
        for ref in self.refs.names("refs/"):
            try:
                if (tip := read_ref(self.objects, ref)) is not None:
                    self.tips[ref] = tip
            except CofuseError as error:
                self.lies[ref] = error.line
        waiting = list(dict.fromkeys(self.tips.values()))
        while waiting:
            commit_id = waiting.pop()
            if commit_id in self.commits:
                continue
            self.commits[commit_id] = None
            try:
                commit = self.commits[commit_id] = load_commit(self.objects, commit_id)
            except CofuseError as error:
                self.failed[commit_id] = error.line
                continue
            self.trees.setdefault(commit.tree, []).append(commit)
            waiting += commit.parents
        for tree_id in roots(self.objects.places):
            self.trees.setdefault(tree_id, [])
        below = dict.fromkeys([*self.commits, *self.trees])
        for tree_id in self.trees:
            try:
                below.update(dict.fromkeys(load_tree(self.objects, tree_id).objects()))
            except CofuseError as error:
                self.failed[tree_id] = error.line
        for part in below:
            at: str | None = part
            while at is not None and at not in self.bases:
                self.bases[at] = None
                with contextlib.suppress(CofuseError):  # `verify` says so
                    self.bases[at] = next((base for base, _ in needs(self.objects, at, "part")), None)
                at = self.bases[at]

    def verify(self, threads: int, progress: Progress) -> None:
        """Read every byte."""
        sizes = {}
        for object_id in self.bases:
            with contextlib.suppress(OSError):
                sizes[object_id] = self.objects.stored_bytes(object_id)
        self.bytes = sum(sizes.values())
        bar = progress.bar("checking", self.bytes, "B")

        def read(object_id: str) -> None:
            try:
                with self.objects.opened(object_id) as found:
                    for k in range(found.envelope.head.chunks):
                        found.chunk(k, every_bit=True)
                    found.shared()
            except CofuseError as error:
                self.failed.setdefault(object_id, error.line)
            bar.advance(sizes.get(object_id, 0))

        for_each(read, self.bases, threads)

    def compare(self) -> None:
        """Does what commits, trees and headers say of each other agree?"""
        for tree_id, made in self.trees.items():
            try:
                tree = load_tree(self.objects, tree_id)
                load_weights(self.objects, tree, f"tree {tree_id}")
                _check_specs(self.objects, tree)
            except CofuseError as error:
                if not any(part in self.failed for part in [tree_id, *self._parts_of(tree_id)]):
                    self.lies[tree_id] = error.line
                continue
            for commit in made:
                if commit.content != tree.content:
                    self.lies[commit.id] = f"the commit's content id is not its tree's, expected {tree.content}"

    def damage(self) -> Iterator[Damage]:
        """What is damaged itself, by id, with what it touches."""
        # A delta that cannot be read because of its base is touched, not damaged.
        causes = {i: why for i, why in self.failed.items() if not any(b in self.failed for b in self._chain(i))}
        causes |= self.lies
        if not causes:
            return
        touching: dict[str, set[str]] = {cause: {cause} for cause in causes}  # cause -> objects that it spoils
        for object_id in self.bases:
            for base in self._chain(object_id):
                if base in causes:
                    touching[base].add(object_id)
        holders = self._holders(set().union(*touching.values()))
        containing = self._refs_of_commits()
        for cause, why in sorted(causes.items()):
            commits: dict[str, None] = {}
            parts: dict[str, None] = {}
            for object_id in sorted(touching[cause]):
                for commit, part in holders.get(object_id, ()):
                    commits[commit] = parts[part] = None
            versions = [Version(i, self._message(i), containing.get(i, ())) for i in commits if i]
            yield Damage(cause, why, tuple(versions), tuple(part for part in parts if part))

    def _chain(self, object_id: str) -> Iterator[str]:
        """What an object is a delta against, the nearest first."""
        seen = {object_id}
        base = self.bases.get(object_id)
        while base is not None and base not in seen:
            seen.add(base)
            yield base
            base = self.bases.get(base)

    def _holders(self, spoilt: set[str]) -> dict[str, list[tuple[str, str]]]:
        """For each spoilt object: the commits that hold it, and as which file or tensor; "" where there is none."""
        found: dict[str, list[tuple[str, str]]] = {}
        for commit_id, commit in self.commits.items():
            for held in [commit_id, *(commit.parents if commit else ())]:
                if held in spoilt:
                    found.setdefault(held, []).append((commit_id, ""))
        for tree_id, made in self.trees.items():
            ids = [commit.id for commit in made] or [""]
            if tree_id in spoilt:
                found.setdefault(tree_id, []).extend((i, "") for i in ids)
            for part, name in self._names_in(tree_id):
                if part in spoilt:
                    found.setdefault(part, []).extend((i, name) for i in ids)
        return found

    def _names_in(self, tree_id: str) -> Iterator[tuple[str, str]]:
        """The parts of a tree and what they are called there; tensors by number where the header cannot be read."""
        try:
            tree = load_tree(self.objects, tree_id)
        except CofuseError:
            return
        for path, entry in sorted(tree.files.items()):
            if isinstance(entry, Plain):
                yield entry.id, path
                continue
            yield entry.header, path
            names: list[str] = [f"tensor {n}" for n in range(len(entry.tensors))]
            with contextlib.suppress(CofuseError):
                names = list(load_header(self.objects, entry, path).entries)
            for tensor, name in zip(entry.tensors, names, strict=True):
                yield tensor, f"{path}: {name}"

    def _parts_of(self, tree_id: str) -> list[str]:
        return [part for part, _ in self._names_in(tree_id)]

    def _refs_of_commits(self) -> dict[str, tuple[str, ...]]:
        """The refs that each commit is in."""
        found: dict[str, tuple[str, ...]] = {}
        for ref, tip in sorted(self.tips.items()):
            seen, waiting = set(), [tip]
            while waiting:
                here = waiting.pop()
                if here not in seen:
                    seen.add(here)
                    found[here] = (*found.get(here, ()), ref)
                    commit = self.commits.get(here)
                    waiting += commit.parents if commit else ()
        return found

    def _message(self, commit_id: str) -> str:
        commit = self.commits.get(commit_id)
        return commit.message if commit else ""


def _check_specs(objects: Objects, tree: Tree) -> None:
    for path, entry in tree.files.items():
        if isinstance(entry, Plain):
            load_plain(objects, entry, path)
        else:
            header = load_header(objects, entry, path)
            for (name, spot), tensor in zip(header.entries.items(), entry.tensors, strict=True):
                load_checked_spec(objects, tensor, TensorSpec(spot.dtype, spot.shape), f"{path}: {name}")
