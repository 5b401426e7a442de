"""From the manifest that git keeps back to the file, verified before and while it is handed out."""

from __future__ import annotations

import os
from collections.abc import Iterator
from hashlib import sha256

from ...errors import CorruptError
from ..checkout import Piece, pieces
from ..codecs import Bytes
from ..sha256 import known_sha256, note_sha256
from ..store import Store
from ..trees import Plain, Tree, load_tree
from ..workers import Workers
from . import roots
from .cleaning import MAX_THREADS, WEIGHTS
from .manifest import Manifest


def smudge(store: Store, manifest: Manifest, *, where: str = "file", threads: int | None = None) -> Iterator[Bytes]:
    """The bytes of a file, in order; verified chunks are read ahead in threads.

    Args:
        store: where it is kept.
        manifest: which version.
        where: what errors call it.
        threads: how many; the processor's number when None.

    Raises:
        CorruptError: something is missing or damaged, or the manifest does not fit what the store holds. A wrong SHA-256
            is known once all bytes have been handed out.
    """
    with store.objects.leases.held(manifest.tree):
        tree = load_file(store, manifest, where)
        (entry,) = tree.files.values()
        found = known_sha256(store.objects, entry)
        if found is None:  # it was made elsewhere: hashed on its way, once
            whole = sha256()
            for data in _read(store, tree, threads):
                whole.update(data)
                yield data
            found = whole.hexdigest()
            note_sha256(store.objects, entry, found)
        elif found == manifest.sha256:
            yield from _read(store, tree, threads)
    if found != manifest.sha256:
        raise CorruptError("the manifest's SHA-256 is not the file's", where=where, got=manifest.sha256, expected=found)


def load_file(store: Store, manifest: Manifest, where: str) -> Tree:
    """The tree of a manifest, which must be what the manifest says.

    Raises:
        CorruptError: it is not, or is missing.
    """
    tree = load_tree(store.objects, manifest.tree)
    entry = tree.files.get(WEIGHTS) or tree.files.get(roots.FILE)
    if (
        len(tree.files) != 1
        or entry is None
        or isinstance(entry, Plain) != (roots.FILE in tree.files)
        or (entry.size, tree.content) != (manifest.size, manifest.content)
    ):
        raise CorruptError("the manifest does not fit its tree", where=where, got=f"tree {manifest.tree}")
    return tree


def _read(store: Store, tree: Tree, threads: int | None) -> Iterator[Bytes]:
    def chunk(piece: Piece) -> Bytes:
        with store.objects.opened(piece.object_id) as found:
            return found.chunk(piece.chunk)

    workers = Workers(min(threads or os.cpu_count() or 1, MAX_THREADS))
    try:
        yield from workers.in_order(chunk, pieces(store.objects, tree))
    finally:
        workers.close()
