"""Is everything that the refs reach there, and whole?"""

from __future__ import annotations

import os
from dataclasses import dataclass

from ..checkpoint import TensorSpec, for_each
from ..errors import CofuseError, RefError
from ..progress import SILENT, Progress
from .commits import Commit, load_commit
from .objects import Objects
from .refs import HEADS, TAGS, Refs
from .trees import Plain, Tree, load_checked_spec, load_header, load_plain, load_tree, load_weights


@dataclass(frozen=True, slots=True)
class Damage:
    """One thing that is wrong: the id of an object (or a ref's name), and what it is."""

    id: str
    problem: str


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
    """Read and verify every object that a ref reaches."""
    damaged: dict[str, str] = {}
    tips: list[str] = []
    for under in (HEADS, TAGS):
        for ref in refs.names(under):
            try:
                tips += [commit for commit in [refs.get(ref)] if commit is not None]
            except RefError as error:
                damaged[ref] = error.line
    commits: set[str] = set()
    trees: dict[str, list[Commit]] = {}
    waiting = list(dict.fromkeys(tips))
    while waiting:
        commit_id = waiting.pop()
        if commit_id in commits:
            continue
        commits.add(commit_id)
        try:
            commit = load_commit(objects, commit_id)
        except CofuseError as error:
            damaged[commit_id] = error.line
            continue
        trees.setdefault(commit.tree, []).append(commit)
        waiting += commit.parents
    reached: dict[str, None] = dict.fromkeys(sorted(commits))
    for tree_id in trees:
        reached[tree_id] = None
        try:
            reached.update(dict.fromkeys(load_tree(objects, tree_id).objects()))
        except CofuseError as error:
            damaged[tree_id] = error.line
    sizes: list[int] = []
    bar = progress.bar("checking", len(reached), "objects")

    def verify(object_id: str) -> None:
        try:
            with objects.opened(object_id) as found:
                for k in range(found.envelope.head.chunks):
                    found.chunk(k)
            sizes.append(objects.stored_bytes(object_id))
        except CofuseError as error:
            damaged.setdefault(object_id, error.line)
        bar.advance()

    for_each(verify, reached, threads or os.cpu_count() or 1)
    for tree_id, made in trees.items():
        try:
            tree = load_tree(objects, tree_id)
            load_weights(objects, tree, f"tree {tree_id}")
            _check_specs(objects, tree)
        except CofuseError as error:
            if not any(part in damaged for part in [tree_id, *_parts(objects, tree_id)]):
                damaged[tree_id] = error.line
            continue
        for commit in made:
            if commit.content != tree.content:
                damaged[commit.id] = f"the commit's content id is not its tree's, expected {tree.content}"
    return Health(len(commits), len(reached), sum(sizes), tuple(Damage(*item) for item in sorted(damaged.items())))


def _parts(objects: Objects, tree_id: str) -> list[str]:
    try:
        return load_tree(objects, tree_id).objects()
    except CofuseError:
        return []


def _check_specs(objects: Objects, tree: Tree) -> None:
    for path, entry in tree.files.items():
        if isinstance(entry, Plain):
            load_plain(objects, entry, path)
        else:
            header = load_header(objects, entry, path)
            for (name, spot), tensor in zip(header.entries.items(), entry.tensors, strict=True):
                load_checked_spec(objects, tensor, TensorSpec(spot.dtype, spot.shape), f"{path}: {name}")
