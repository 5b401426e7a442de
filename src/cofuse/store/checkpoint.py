"""A checkpoint that is read from a store, chunk by verified chunk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from ..checkpoint import Checkpoint, Entry, TensorSpec
from ..checkpoint.disk import INDEX, MAX_SIDE_FILE, SIDE_ENDINGS, SINGLE, _aliases_in
from ..errors import StoreError
from .objects import Objects
from .trees import Plain, Tree, Weights, load_checked_spec, load_tree, load_weights


class StoreCheckpoint(Checkpoint):
    """A tree as the checkpoint that its folder would open as.

    Args:
        objects: where its parts are.
        tree_id: the tree.
        where: what errors call it.

    Raises:
        CorruptError: the tree or a header in it is missing or damaged.
        StoreError: it holds no safetensors weights, or only an adapter's.
    """

    def __init__(self, objects: Objects, tree_id: str, where: str) -> None:
        self.tree_id = tree_id
        self._objects = objects
        self._where = where
        tree = load_tree(objects, tree_id)
        if "adapter_config.json" in tree.files and not any(name in tree.files for name in (*SINGLE, *INDEX)):
            raise StoreError(
                "an adapter needs its base", where=where, hint="check it out, and open the folder with its base"
            )
        headers = load_weights(objects, tree, where)
        if not headers:
            raise StoreError(
                "no safetensors weights", where=where, hint="check it out into a folder, and open the folder"
            )
        self._entries: dict[str, Entry] = {}
        self._ids: dict[str, str] = {}
        self._metadata: dict[str, str] = {}
        self._aliases: dict[str, str] = {}
        for path, header in headers.items():
            entry = tree.files[path]
            if isinstance(entry, Weights):
                self._ids.update(zip(header.entries, entry.tensors, strict=True))
            self._entries.update(header.entries)
            tied = _aliases_in(header)
            self._metadata.update({k: v for k, v in header.metadata.items() if k not in tied})
            self._aliases.update(tied)
        # What one shard calls a tied name may be a tensor of its own in another.
        self._aliases = {k: v for k, v in self._aliases.items() if k not in self._entries}
        self.content = tree.content
        self._files = _Files(objects, tree)

    @property
    def root(self) -> Path:
        """The folder of the store."""
        return self._objects.places.root

    def tensor_ids(self) -> Mapping[str, str]:
        """The id of every tensor, by name; known without reading."""
        return self._ids

    def names(self) -> tuple[str, ...]:
        return tuple(self._entries)

    def spec(self, name: str) -> TensorSpec:
        entry = self._entries.get(self.resolve(name))
        if entry is None:
            raise self.missing(name)
        return TensorSpec(entry.dtype, entry.shape)

    def read_bytes(self, name: str, start: int = 0, stop: int | None = None) -> bytearray:
        start, stop = self.check_range(name, start, stop)
        tensor = self._ids[self.resolve(name)]
        load_checked_spec(self._objects, tensor, self.spec(name), f"{self._where}: {name}")
        return self._objects.read(tensor, start, stop, kind="tensor")


class _Files(Mapping[str, bytes]):
    """Small files, by the rules of `checkpoint.disk.side_files`."""

    def __init__(self, objects: Objects, tree: Tree) -> None:
        self._objects = objects
        self._entries = {
            path: entry.id
            for path, entry in sorted(tree.files.items())
            if isinstance(entry, Plain)
            and "/" not in path
            and Path(path).suffix in SIDE_ENDINGS
            and not path.endswith(".index.json")
            and not path.startswith((".", "trainer_state"))
            and entry.size <= MAX_SIDE_FILE
        }

    def __getitem__(self, name: str) -> bytes:
        return bytes(self._objects.read(self._entries[name], kind="file"))

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)
