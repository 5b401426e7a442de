"""Making a round's commit from its record, and nothing else: by the worker that fuses, and by whoever replays it.

steps     each fuses versions by a recipe; the next may name what it gives: "step 1"
result    the commit or step whose weights the commit has
files     those of the base, but for its weights; of a rollback, those of the result
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from ...checkpoint import Checkpoint, Source, TensorSpec, View, body
from ...checkpoint.disk import INDEX, MAX_SIDE_FILE
from ...errors import CorruptError, FuseError
from ...fuse import Recipe, fuse_recipe
from ...progress import SILENT, Progress
from ...store import Store
from ...store.adding import Known, add
from ...store.commits import Commit, put_commit
from ...store.envelope import Head
from ...store.trees import Plain, Tree, load_tree, weights_files
from ...store.writing import Writing, writing


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a round's commit says of itself; all that it depends on.

    Attributes:
        base: the commit that it comes after.
        message: of the commit.
        record: what is under `round` in the commit's record.
    """

    base: str
    message: str
    record: Mapping[str, Any]

    @classmethod
    def of(cls, commit: Commit) -> Recorded:
        """What made a commit.

        Raises:
            FuseError: it was not made by a round.
        """
        record = commit.record.get("round")
        if not isinstance(record, dict) or "result" not in record or not commit.parents:
            raise FuseError(
                "no record of a round", where=f"commit {commit.id[:12]}", hint="only releases of a hub have one"
            )
        release = commit.record.get("release")
        prefix = f"{release['version']}: " if isinstance(release, dict) and "version" in release else ""
        return cls(commit.parents[0], commit.message.removeprefix(prefix), record)

    @property
    def needs(self) -> tuple[str, ...]:
        """The commits and trees that it was made from."""
        named = [address for one in self.record["steps"] for address in _recipe(one).addresses]
        named += [self.base, self.record["result"], *(one["onto"] for one in self.record["steps"])]
        return tuple(dict.fromkeys(name for name in named if not name.startswith("step ")))


def make(store: Store, what: Recorded, *, threads: int | None = None, progress: Progress = SILENT) -> Commit:
    """Make a round's commit; the same record gives the same commit, on any machine.

    No ref is moved. Memory is a few blocks a thread, and for each contribution and thread a chunk of 4 MiB that is unpacked.

    Args:
        store: has all that the record names.
        what: what is made.
        threads: how many; nothing depends on it.
        progress: told of every chunk.

    Raises:
        FuseError: contributions cannot be fused so.
        CorruptError: something is missing or damaged.
    """
    threads = threads or os.cpu_count() or 1
    with writing(store.objects, threads) as pen:
        for need in what.needs:
            pen.rely_on(need)
        there: dict[str, str] = {}
        base = load_tree(store.objects, store.tree(what.base))
        for number, one in enumerate(what.record["steps"], 1):
            there[f"step {number}"] = _fused(store, pen, one, there, threads, progress)
        result = what.record["result"]
        weights = load_tree(store.objects, there.get(result) or store.tree(result))
        tree = weights if what.record["kind"] == "rollback" else dressed(store, base, weights)
        data = tree.encode()
        made = pen.put_bytes(Head("tree", len(data)), data, like=store.tree(what.base))
        commit = put_commit(
            pen,
            store.objects,
            tree=made,
            content=tree.content,
            parents=[what.base],
            message=what.message,
            author="",
            record={"round": dict(what.record)},
        )
        pen.sync()
    return commit


def dressed(store: Store, base: Tree, weights: Tree) -> Tree:
    """The files of one tree, with the weights of another."""
    kept = {path: entry for path, entry in base.files.items() if path not in _of_weights(store, base)}
    new = {path: entry for path, entry in weights.files.items() if path in _of_weights(store, weights)}
    return Tree(kept | new, weights.content)


def _of_weights(store: Store, tree: Tree) -> set[str]:
    index = {
        name: bytes(store.objects.read(entry.id, kind="file"))
        for name in INDEX
        if isinstance(entry := tree.files.get(name), Plain) and entry.size <= MAX_SIDE_FILE
    }
    return {*weights_files(tree.files, index), *index}


def _fused(
    store: Store, pen: Writing, one: Mapping[str, Any], there: Mapping[str, str], threads: int, progress: Progress
) -> str:
    """The tree of what a step gives: weights alone."""
    recipe = _recipe(one)
    opened: dict[str, Checkpoint] = {
        name: store.checkpoint(there.get(name, name)) for name in (*recipe.addresses, one["onto"])
    }
    base = opened[one["onto"]]
    for name, model in opened.items():
        if name not in _statistics(recipe):
            # What somebody pushed may lack what no training changes; a contribution was made like its base when it came.
            opened[name] = model if _specs(model) == _specs(base) else body(model, like=base)
            check_alike(opened[name], base, name)
    fused = fuse_recipe(recipe, opened)
    plain = View(
        {name: Source(fused, name) for name in base.names()},
        files=base.files,
        metadata=base.metadata,
        aliases=base.aliases,
        where=fused.where,
    )
    known = Known.of(store.objects, [store.tree(there.get(one["onto"], one["onto"]))])
    return add(pen, store.objects, plain, known, threads=threads, progress=progress)


def check_alike(model: Checkpoint, base: Checkpoint, name: str) -> None:
    """Refuse a model that has not the tensors of its base, of their dtypes and shapes.

    Raises:
        FuseError: it has not.
    """
    ours, theirs = _specs(model), _specs(base)
    if ours != theirs:
        wrong = min(n for n in ours.keys() | theirs.keys() if ours.get(n) != theirs.get(n))
        raise FuseError(
            "a contribution has not its base's tensors",
            where=name[:12],
            got=ours.get(wrong, f"no {wrong}"),
            expected=theirs.get(wrong),
        )


def _specs(model: Checkpoint) -> dict[str, TensorSpec]:
    return {name: model.spec(name) for name in model.names()}


def _statistics(recipe: Recipe) -> set[str]:
    return {address for _, given in recipe.given() for address in given.statistics.values()}


def _recipe(one: Mapping[str, Any]) -> Recipe:
    try:
        return Recipe.model_validate({**one["recipe"], "seed": one["seed"]})
    except ValidationError as error:
        raise FuseError("the recorded recipe cannot be read", got=error.errors()[0]["msg"]) from None
    except (KeyError, TypeError) as error:
        raise CorruptError("a round's record is not whole", got=error) from None
