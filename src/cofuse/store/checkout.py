"""A tree written out as the folder it was made from, every byte as it was."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from ..checkpoint import TensorSpec, building, chunks, for_each, sync_folder
from ..errors import StoreError
from ..progress import SILENT, Progress
from .objects import Objects
from .places import FOLDER
from .trees import Plain, Tree, load_checked_spec, load_header, load_plain

_NOTHING: Mapping[str, Path] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Piece:
    """One chunk of an object, and its place in a file."""

    path: str
    at: int
    object_id: str
    chunk: int


def write_tree(
    objects: Objects,
    tree: Tree,
    folder: Path,
    *,
    replace: bool = False,
    reuse: Mapping[str, Path] = _NOTHING,
    threads: int | None = None,
    progress: Progress = SILENT,
) -> None:
    """Write a tree into a folder, which appears whole or not at all.

    Args:
        objects: where its parts are.
        tree: what to write.
        folder: new or empty.
        replace: let the new folder take the place of one with files in it, which are lost.
        reuse: files that are there already, by path; they are linked, or copied, and not read from the store.
        threads: how many; the processor's number when None.
        progress: told of every piece written.

    Raises:
        StoreError: the folder is in use, or holds a store.
        CorruptError: something stored is damaged; the folder is as it was.
        CheckpointError: the folder cannot be written.
    """
    _check_target(folder, objects.places.root, replace)
    with building(folder) as temporary:
        for path, entry in sorted(tree.files.items()):
            place = temporary / path
            place.parent.mkdir(parents=True, exist_ok=True)
            if path in reuse:
                _link(reuse[path], place)
                continue
            with open(place, "xb") as file:
                if hasattr(os, "posix_fallocate") and entry.size:
                    os.posix_fallocate(file.fileno(), 0, entry.size)  # a full disk is found out before any work
        missing = Tree({path: entry for path, entry in tree.files.items() if path not in reuse}, tree.content)
        bar = progress.bar(f"writing {folder.name}", missing.size, "B")

        def write(piece: Piece) -> None:
            with objects.opened(piece.object_id) as found, open(temporary / piece.path, "r+b", buffering=0) as file:
                data = memoryview(found.chunk(piece.chunk))
                bar.advance(len(data))
                at = piece.at
                while data:
                    done = os.pwrite(file.fileno(), data, at)
                    data, at = data[done:], at + done

        workers = threads or os.cpu_count() or 1
        for_each(write, pieces(objects, missing), workers)
        for_each(lambda path: _sync(temporary / path), tree.files, workers)
        for here, _, _ in os.walk(temporary):
            sync_folder(Path(here))


def pieces(objects: Objects, tree: Tree) -> Iterator[Piece]:
    """Every piece of every file, in order, with what the tree says checked against its objects."""
    for path, entry in sorted(tree.files.items()):
        if isinstance(entry, Plain):
            parts = [(entry.id, load_plain(objects, entry, path).size)]
        else:
            header = load_header(objects, entry, path)
            parts = [(entry.header, header.data_start)]
            for (name, spot), tensor in zip(header.entries.items(), entry.tensors, strict=True):
                head = load_checked_spec(objects, tensor, TensorSpec(spot.dtype, spot.shape), f"{path}: {name}")
                parts.append((tensor, head.size))
        at = 0
        for object_id, size in parts:
            for k, (start, _) in enumerate(chunks(size)):
                yield Piece(path, at + start, object_id, k)
            at += size


def _link(source: Path, place: Path) -> None:
    try:
        os.link(source, place)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, place)


def _sync(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _check_target(folder: Path, store: Path, replace: bool) -> None:
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise StoreError("not a folder", where=folder, expected="a new or empty folder")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if (folder / FOLDER).exists() or (folder / "objects").exists() or store.is_relative_to(folder.resolve()):
        raise StoreError("the folder holds a store, which would be lost", where=folder, hint="choose another folder")
    if not replace:
        raise StoreError("the folder is not empty", where=folder, hint="choose another, or say that it is replaced")
