"""A folder beside a version: which files, and which tensors in them, are not as they were."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..checkpoint import Hashed, SafetensorsFile, file_id, for_each
from ..checkpoint.disk import INDEX, MAX_SIDE_FILE
from ..checkpoint.identity import file_id_at
from ..checkpoint.remembered import Remembered
from ..errors import CofuseError, StoreError
from ..progress import SILENT, Progress
from .adding import _walk
from .differences import changes
from .objects import Objects
from .parts import Trees, labelled
from .trees import Plain, Tree, Weights, content_of, weights_files


@dataclass(frozen=True, slots=True)
class Scan:
    """What a folder holds: the tree that a commit of it would have, and the id of each tensor by what people call it."""

    folder: Path
    tree: Tree
    tensors: Mapping[str, str]

    def alike(self, tree: Tree) -> dict[str, Path]:
        """The places of those files that a tree has too, just so, by path."""
        places = {path: self.folder / path for path, entry in self.tree.files.items() if tree.files.get(path) == entry}
        # What a link points to is somebody else's (the Hugging Face cache's).
        return {path: place for path, place in places.items() if not place.is_symlink()}


@dataclass(frozen=True, slots=True)
class Status:
    """How a folder differs from a version: `added`, `changed` or `removed`, by path and by tensor."""

    files: Mapping[str, str]
    tensors: Mapping[str, str]


def scan(
    folder: Path, memory: Remembered | None = None, *, threads: int | None = None, progress: Progress = SILENT
) -> Scan:
    """Find out what a commit of a folder would hold; nothing is kept.

    Args:
        folder: where.
        memory: ids of files that were hashed before. The caller tells it to `keep` what is found out here.
        threads: how many; the processor's number when None.
        progress: told of every file.

    Raises:
        StoreError: something in the folder cannot be kept.
        CheckpointError: something cannot be read, or a safetensors file is damaged.
    """
    if not folder.is_dir():
        raise StoreError("no such folder", where=folder)
    workers = threads or os.cpu_count() or 1
    try:
        places = dict(sorted(_walk(folder)))
        sizes = {path: place.stat().st_size for path, place in places.items()}
    except OSError as error:
        raise StoreError("cannot read the folder", where=error.filename or folder, got=error.strerror) from None
    bar = progress.bar(f"looking at {folder.name or folder}", sum(sizes.values()), "B")
    files: dict[str, Plain | Weights] = {}
    tensors: dict[str, dict[str, str]] = {}
    for path, place in places.items():
        if path.endswith(".safetensors"):
            file = SafetensorsFile(place)
            hashed = memory.watch(file) if memory is not None else Hashed(file)
            tensors[path] = hashed.tensor_ids(file.header.entries, workers)
            files[path] = Weights(file_id(file.header.raw), sizes[path], tuple(tensors[path].values()))
            bar.advance(sizes[path])
    ids: dict[str, str] = {}

    def look(path: str) -> None:
        ids[path] = memory.file_id(places[path]) if memory is not None else file_id_at(places[path])
        bar.advance(sizes[path])

    for_each(look, [path for path in places if path not in files], workers)
    files |= {path: Plain(ids[path], sizes[path]) for path in ids}
    index = {name: places[name].read_bytes() for name in INDEX if name in places and sizes[name] <= MAX_SIDE_FILE}
    main = weights_files(files, index)
    parts: dict[str, dict[str, str]] = {"": {}}
    for path, found in tensors.items():
        parts.setdefault("" if path in main else path, {}).update(found)
    return Scan(folder, Tree(files, content_of(tensors, main)), labelled(parts))


def compare(objects: Objects, version: Tree, found: Scan) -> Status:
    """A scanned folder beside a version; nothing is read of the version but headers.

    Raises:
        CorruptError: a header of the version is missing or damaged.
    """
    if version.files == found.tree.files:
        return Status({}, {})
    parts = Trees(objects).parts(version, "the version")
    before = labelled({group: part.tensor_ids() for group, part in parts.items()})
    return Status(changes(version.files, found.tree.files), changes(before, found.tensors))


def held(
    objects: Objects,
    folder: Path,
    memory: Remembered | None = None,
    *,
    threads: int | None = None,
    progress: Progress = SILENT,
) -> Scan | None:
    """What a folder holds, if the store has every byte of it, so that nothing is lost with the folder; None otherwise."""
    if not folder.is_dir() or not any(folder.iterdir()):
        return None
    try:
        found = scan(folder, memory, threads=threads, progress=progress)
    except CofuseError:
        return None  # a folder that cannot be committed
    if sum(len(names) for _, _, names in os.walk(folder)) != len(found.tree.files):
        return None  # a tool's folder beside them (.git), which a commit leaves out
    tree = found.tree.id
    return found if tree in objects and objects.envelope(tree).head.kind == "tree" else None
