"""What a tree holds, as checkpoints: one for the weights that its folder opens as, one for each other safetensors file.

A part knows the ids of its tensors, so versions are compared without reading a tensor; and its header is not even
parsed where two versions keep a file alike.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import NamedTuple, TypeVar

from ..checkpoint import CHUNK, Checkpoint, Entry, Header, Source, TensorSpec, View
from ..checkpoint.disk import INDEX, MAX_SIDE_FILE, aliases_in, is_side_file
from .objects import Objects
from .trees import Plain, Tree, Weights, load_checked_spec, load_header, load_tree, weights_files

T = TypeVar("T")
_HEADERS = 16  # remembered: most versions of a model share one


class Part(Checkpoint):
    """Some safetensors files of a tree as one checkpoint.

    Args:
        objects: where its parts are.
        weights: the files, by path.
        headers: gives their headers, by path, when first asked.
        where: what errors call it.
    """

    def __init__(
        self,
        objects: Objects,
        weights: Mapping[str, Weights],
        headers: Callable[[], Mapping[str, Header]],
        where: str,
    ) -> None:
        self._objects = objects
        self.weights = dict(weights)
        self._load = headers
        self._where = where
        self._last = threading.local()

    @cached_property
    def headers(self) -> Mapping[str, Header]:
        """The header of each file, by path."""
        return self._load()

    @cached_property
    def _ids(self) -> dict[str, str]:
        ids: dict[str, str] = {}
        for path, weights in self.weights.items():
            ids.update(zip(self.headers[path].entries, weights.tensors, strict=True))
        return ids

    @cached_property
    def _entries(self) -> dict[str, Entry]:
        return {name: entry for header in self.headers.values() for name, entry in header.entries.items()}

    @cached_property
    def _tied(self) -> dict[str, str]:
        # What one shard calls a tied name may be a tensor of its own in another.
        found = {k: v for header in self.headers.values() for k, v in aliases_in(header).items()}
        return {k: v for k, v in found.items() if k not in self._entries}

    def tensor_ids(self) -> Mapping[str, str]:
        """The id of every tensor, by name; known without reading."""
        return self._ids

    @property
    def metadata(self) -> Mapping[str, str]:
        merged: dict[str, str] = {}
        for header in self.headers.values():
            tied = aliases_in(header)
            merged.update({k: v for k, v in header.metadata.items() if k not in tied})
        return merged

    @property
    def aliases(self) -> Mapping[str, str]:
        return self._tied

    def names(self) -> tuple[str, ...]:
        return tuple(self._entries)

    def spec(self, name: str) -> TensorSpec:
        entry = self._entries.get(self.resolve(name))
        if entry is None:
            raise self.missing(name)
        return TensorSpec(entry.dtype, entry.shape)

    def read_bytes(self, name: str, start: int = 0, stop: int | None = None) -> bytearray:
        start, stop = self.check_range(name, start, stop)
        return self._objects.read(self._checked(name), start, stop, kind="tensor")

    def read_into(self, name: str, start: int, out: memoryview) -> None:
        self.check_range(name, start, start + len(out))
        tensor, size = self._checked(name), self.spec(name).nbytes
        done = 0
        while done < len(out):
            number, at = divmod(start + done, CHUNK)
            piece = memoryview(self._chunk(tensor, number, size))[at : at + len(out) - done]
            out[done : done + len(piece)] = piece
            done += len(piece)

    def _chunk(self, tensor: str, number: int, size: int) -> bytearray:
        # Blocks of a fuse are a quarter of a chunk and less: a thread that goes on where it was unpacks a chunk once.
        key = (tensor, number)
        if getattr(self._last, "key", None) != key:
            stop = min(size, (number + 1) * CHUNK)
            self._last.data = self._objects.read(tensor, number * CHUNK, stop, kind="tensor")
            self._last.key = key
        data: bytearray = self._last.data
        return data

    def _checked(self, name: str) -> str:
        tensor = self._ids[self.resolve(name)]
        load_checked_spec(self._objects, tensor, self.spec(name), f"{self._where}: {name}")
        return tensor


def label(part: str, name: str) -> str:
    """What people call a tensor of a part."""
    return f"{part}: {name}" if part else name


def labelled(parts: Mapping[str, Mapping[str, T]]) -> dict[str, T]:
    """What each part has under its names, under those that people call them by."""
    return {label(part, name): value for part, held in parts.items() for name, value in held.items()}


class Whole(View):
    """Tensors of a tree; those of parts beside the checkpoint are called `PATH: NAME`.

    Args:
        parts: of a tree, as `Trees.parts` gives them.
        where: what errors call it.
        files: the small files beside them.
        only: of these parts, only these tensors, and no ties.
    """

    def __init__(
        self,
        parts: Mapping[str, Part],
        where: str,
        files: Mapping[str, bytes] = MappingProxyType({}),
        only: Mapping[str, Sequence[str]] = MappingProxyType({}),
    ) -> None:
        self._ids: dict[str, str] = {}
        sources: dict[str, Source] = {}
        ties: dict[str, str] = {}
        for group, part in parts.items():
            ids = part.tensor_ids()
            for name in only.get(group, ids):
                sources[label(group, name)] = Source(part, name)
                self._ids[label(group, name)] = ids[name]
            if group not in only:
                ties.update({label(group, name): label(group, kept) for name, kept in part.aliases.items()})
        super().__init__(sources, files=files, aliases=ties, where=where)

    def tensor_ids(self) -> Mapping[str, str]:
        """The id of every tensor, by name; known without reading."""
        return self._ids


class Apart(NamedTuple):
    """Where two versions may differ: what of each is to be compared name by name, and how many tensors are alike anyway."""

    before: Whole
    after: Whole
    same: int


class SideFiles(Mapping[str, bytes]):
    """Small files, by the rules of `checkpoint.disk.is_side_file`."""

    def __init__(self, objects: Objects, tree: Tree) -> None:
        self._objects = objects
        self.ids = {
            path: entry.id
            for path, entry in sorted(tree.files.items())
            if isinstance(entry, Plain) and "/" not in path and is_side_file(path, entry.size)
        }

    def __getitem__(self, name: str) -> bytes:
        return bytes(self._objects.read(self.ids[name], kind="file"))

    def __iter__(self) -> Iterator[str]:
        return iter(self.ids)

    def __len__(self) -> int:
        return len(self.ids)


class Trees:
    """Trees of a store taken apart; headers that many of them share are parsed once."""

    def __init__(self, objects: Objects) -> None:
        self.objects = objects
        self._headers: OrderedDict[tuple[str, int], Header] = OrderedDict()

    def load(self, tree_id: str) -> Tree:
        """A tree, by id."""
        return load_tree(self.objects, tree_id)

    def main(self, files: Mapping[str, Plain | Weights]) -> list[str]:
        """Which of a tree's safetensors files make the checkpoint that the folder opens as."""
        index = {
            name: bytes(self.objects.read(entry.id, kind="file"))
            for name in INDEX
            if isinstance(entry := files.get(name), Plain) and entry.size <= MAX_SIDE_FILE
        }
        return weights_files(files, index)

    def parts(self, tree: Tree, where: str) -> dict[str, Part]:
        """Its parts: under "" the weights that the folder opens as, under its path each other safetensors file.

        Raises:
            CorruptError: something is missing or damaged.
        """
        weights = {path: entry for path, entry in sorted(tree.files.items()) if isinstance(entry, Weights)}
        main = self.main(tree.files)
        parts = {"": self._part({path: weights[path] for path in main}, where)} if main else {}
        return parts | {path: self._part({path: entry}, where) for path, entry in weights.items() if path not in main}

    def apart(self, before: Tree, after: Tree, names: tuple[str, str] = ("before", "after")) -> Apart:
        """Set two trees beside each other; headers are parsed of those files alone that differ.

        Args:
            before: a tree.
            after: another.
            names: what errors call them.
        """
        held = [self.parts(tree, name) for tree, name in zip((before, after), names, strict=True)]
        only: dict[str, list[str]] = {}
        same = 0
        for group in held[0].keys() & held[1].keys():
            a, b = held[0][group].weights, held[1][group].weights
            if a == b:
                same += sum(len(entry.tensors) for entry in a.values())
                del held[0][group], held[1][group]
            elif {path: (e.header, e.size) for path, e in a.items()} == {p: (e.header, e.size) for p, e in b.items()}:
                only[group] = [
                    name
                    for path, header in held[0][group].headers.items()
                    for name, x, y in zip(header.entries, a[path].tensors, b[path].tensors, strict=True)
                    if x != y
                ]
                same += sum(len(entry.tensors) for entry in a.values()) - len(only[group])
        one, two = (
            Whole(parts, name, SideFiles(self.objects, tree), only)
            for parts, name, tree in zip(held, names, (before, after), strict=True)
        )
        return Apart(one, two, same)

    def _part(self, weights: Mapping[str, Weights], where: str) -> Part:
        def headers() -> Mapping[str, Header]:
            return {path: self._header(entry, f"{where}: {path}") for path, entry in weights.items()}

        return Part(self.objects, weights, headers, where)

    def _header(self, weights: Weights, where: str) -> Header:
        key = (weights.header, weights.size)
        found = self._headers.get(key)
        if found is None or len(found.entries) != len(weights.tensors):  # the latter is refused by `load_header`
            found = self._headers[key] = load_header(self.objects, weights, where)
            while len(self._headers) > _HEADERS:
                self._headers.popitem(last=False)
        return found
