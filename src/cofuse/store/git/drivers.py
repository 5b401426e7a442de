"""What git's diff and merge drivers do: say which tensors differ and by how much, and merge what both sides changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from ...checkpoint import Checkpoint, SafetensorsFile, TensorSpec, map_each, tensor_id
from ...errors import CheckpointError, ConflictError, StoreError
from ...progress import SILENT, Progress
from ..parts import Trees
from ..sha256 import file_sha256
from ..trees import Tree
from . import roots
from .manifest import MAX_MANIFEST, Manifest, load_manifest
from .repository import Repository, ask_git
from .sharing import ensure
from .smudging import load_file

METHOD = "cofuse.mergeMethod"
OURS, THEIRS = "cofuse.mergeOurs", "cofuse.mergeTheirs"


class Side(NamedTuple):
    """One version of a file: the weights, or (None) how many bytes of something else, or of nothing."""

    weights: Checkpoint | None
    size: int


class Versions:
    """Versions of files as checkpoints, by whatever git has at hand of them.

    Args:
        repository: where the store is.
        threads: how many hash what is not in the store.
    """

    def __init__(self, repository: Repository, threads: int) -> None:
        self._repository = repository
        self._trees = Trees(repository.store.objects)
        self._threads = threads

    def of(self, file: str, blob: str, where: str) -> Side:
        """The version in a file that git has written, whose blob may be known.

        Where it is, the file is not even opened: its manifest says what it holds.
        """
        raw = ask_git("cat-file", "blob", blob) if blob.strip("0.") else None
        path = Path(file)
        if raw is None:
            if file == "/dev/null":
                return Side(None, 0)
            raw = path.read_bytes() if path.stat().st_size <= MAX_MANIFEST else b""
        manifest = Manifest.parse(raw, where)
        if manifest is not None:
            return self._kept(manifest, where)
        try:
            return Side(SafetensorsFile(path), path.stat().st_size)
        except CheckpointError:
            return Side(None, path.stat().st_size)

    def _kept(self, manifest: Manifest, where: str) -> Side:
        ensure(self._repository, [manifest])
        tree = load_file(self._repository.store, manifest, where)
        return Side(self._trees.parts(tree, where).get(""), manifest.size)

    def listed(self, side: Side) -> Iterator[str]:
        """A line for every tensor, with its id."""
        if side.weights is None:
            yield f"{side.size} bytes, no safetensors"
            return
        names = sorted(side.weights.names())
        found: Mapping[str, str] = getattr(side.weights, "tensor_ids", dict)()
        weights = side.weights
        ids = [found[n] for n in names] if found else map_each(lambda n: tensor_id(weights, n), names, self._threads)
        for name, tensor in zip(names, ids, strict=True):
            yield f"{name}  {_spec(side.weights.spec(name))}  {tensor[:16]}"
        for name, kept in sorted(side.weights.aliases.items()):
            yield f"{name}  tied to {kept}"


def diff(before: Side, after: Side, threads: int, progress: Progress = SILENT) -> Iterator[str]:
    """What changed between two versions, a line a tensor; the most changed first."""
    if before.weights is None or after.weights is None:
        words = (
            "weights" if side.weights is not None else "no safetensors" if side.size else "nothing"
            for side in (before, after)
        )
        yield " to ".join(f"{word}, {side.size:,} bytes" for word, side in zip(words, (before, after), strict=True))
        return
    from ..differences import differences

    found = differences(before.weights, after.weights, threads=threads, progress=progress)
    size = (
        "" if found.fraction is None else f"; {found.fraction:.3%} of their values, relative norm {found.relative:.3g}"
    )
    yield f"{len(found.tensors)} tensors differ, {found.same} do not{size}"
    width = max((len(one.name) for one in found.tensors), default=0)
    for one in found.tensors:
        spec = _spec(one.after or one.before)
        if one.status in ("reshaped", "retyped"):
            spec = f"{_spec(one.before)} to {spec}"
        numbers = "" if one.relative is None else f"  {one.fraction:8.3%}  {one.relative:9.3g}"
        yield f"  {one.status:<8}  {one.name:<{width}}  {spec}{numbers}"


def merge(
    repository: Repository, manifests: tuple[bytes, bytes, bytes], path: str, threads: int, progress: Progress = SILENT
) -> tuple[bytes, str]:
    """Merge two versions of a file that come from a third; gives the manifest of the result, and what was done.

    What one side changed is taken; what both changed is fused by the method that git's `cofuse.mergeMethod` names, with
    its settings behind it (`ties density=0.2`); `linear`, the mean of both changes, when it is not set. Of the tensors that
    the globs in `cofuse.mergeOurs` and `cofuse.mergeTheirs` name, that side is taken instead.

    Args:
        repository: where.
        manifests: the merge base's, ours and theirs, as git keeps them.
        path: of the file.
        threads: how many.
        progress: told of every chunk.

    Raises:
        ConflictError: both sides changed what cannot be fused; lists all of it. Nothing is kept.
        StoreError: there is no merge base, or a version is not kept by cofuse.
    """
    from ..deciding import Settled
    from ..merging import Side as Version
    from ..merging import three_way
    from ..recipes import fusing, recipe_for
    from ..writing import writing

    if not manifests[0]:
        raise StoreError("both sides added the file, and there is no version that both come from", where=path)
    store = repository.store
    loaded = [
        load_manifest(raw, f"{path} ({who})") for raw, who in zip(manifests, ("base", "ours", "theirs"), strict=True)
    ]
    ensure(repository, loaded)
    trees = [load_file(store, manifest, path) for manifest in loaded]
    method, settings = _method(repository.config(METHOD) or "linear")
    recipe = recipe_for(method, settings, 0, ours=loaded[1].tree, theirs=loaded[2].tree)
    base, ours, theirs = (Version(who, tree) for who, tree in zip(("base", "ours", "theirs"), trees, strict=True))
    settled = Settled(*(tuple((repository.config(key) or "").split()) for key in (OURS, THEIRS)))
    try:
        merged = three_way(Trees(store.objects), base, ours, theirs, fusing(recipe), settled)
    except ConflictError as error:
        error.hint = f"take a side for all of it: git checkout --ours (or --theirs) {path}; for some, merge again with "
        error.hint += f"git -c '{OURS}=GLOB' -c '{THEIRS}=GLOB' merge ..."
        raise
    with writing(store.objects) as pen:
        for read in loaded:
            pen.rely_on(read.tree)
        tree_id, tree = merged.put(pen, trees[1], threads=threads, progress=progress)
        _check_one(tree, path)
        pen.sync()
        roots.keep(store.objects.places, tree_id, tree)
    report = merged.report
    said = f"{path}: {report.ours} changes of ours, {report.theirs} of theirs, {len(report.fused)} tensors fused by {method}"
    manifest = Manifest(tree_id, tree.content, tree.size, file_sha256(store.objects, *tree.files.values()))
    return manifest.encode(), "\n".join([said, *report.notes])


def _check_one(tree: Tree, path: str) -> None:
    if len(tree.files) != 1:
        raise ConflictError([f"{path}: weights on one side, another kind of file on the other"])


def _method(text: str) -> tuple[str, dict[str, object]]:
    import json

    method, *words = text.split()
    settings: dict[str, object] = {}
    for word in words:
        key, _, value = word.partition("=")
        try:
            settings[key] = json.loads(value)
        except ValueError:
            settings[key] = value
    return method, settings


def _spec(spec: TensorSpec | None) -> str:
    return "" if spec is None else f"{spec.dtype} {list(spec.shape)}"
