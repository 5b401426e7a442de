"""A checkpoint that is read from a store, chunk by verified chunk."""

from __future__ import annotations

from pathlib import Path

from ..checkpoint.disk import INDEX, SINGLE
from ..errors import StoreError
from .objects import Objects
from .parts import Part, SideFiles
from .trees import Weights, load_tree, load_weights


class StoreCheckpoint(Part):
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
        objects.leases.hold_for(self, tree_id)  # a branch that is removed takes nothing from whoever reads it
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
        weights = {path: entry for path in headers if isinstance(entry := tree.files[path], Weights)}
        super().__init__(objects, weights, lambda: headers, where)
        self.content = tree.content
        self._files = SideFiles(objects, tree)

    @property
    def root(self) -> Path:
        """The folder of the store."""
        return self._objects.places.root
