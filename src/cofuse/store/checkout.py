"""A tree written out as the folder it was made from, every byte as it was."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..checkpoint import TensorSpec, building, chunks, for_each, sync_folder
from ..errors import StoreError
from ..progress import SILENT, Progress
from .objects import Objects
from .places import FOLDER
from .trees import Plain, Tree, load_checked_spec, load_header, load_plain


@dataclass(frozen=True, slots=True)
class _Piece:
    """Up to one chunk of an object, and its place in a file."""

    path: str
    at: int
    object_id: str
    start: int
    stop: int


def write_tree(
    objects: Objects,
    tree: Tree,
    folder: Path,
    *,
    replace: bool = False,
    threads: int | None = None,
    progress: Progress = SILENT,
) -> None:
    """Write a tree into a folder, which appears whole or not at all.

    Args:
        objects: where its parts are.
        tree: what to write.
        folder: new or empty.
        replace: let the new folder take the place of one with files in it, which are lost.
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
            with open(place, "xb") as file:
                if hasattr(os, "posix_fallocate") and entry.size:
                    os.posix_fallocate(file.fileno(), 0, entry.size)  # a full disk is found out before any work
        bar = progress.bar(f"writing {folder.name}", tree.size, "B")

        def write(piece: _Piece) -> None:
            data = objects.read(piece.object_id, piece.start, piece.stop)
            with open(temporary / piece.path, "r+b") as file:
                file.seek(piece.at)
                file.write(data)
            bar.advance(piece.stop - piece.start)

        workers = threads or os.cpu_count() or 1
        for_each(write, _pieces(objects, tree), workers)
        for_each(lambda path: _sync(temporary / path), tree.files, workers)
        for here, _, _ in os.walk(temporary):
            sync_folder(Path(here))


def _pieces(objects: Objects, tree: Tree) -> Iterator[_Piece]:
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
            for start, stop in chunks(size):
                yield _Piece(path, at + start, object_id, start, stop)
            at += size


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
