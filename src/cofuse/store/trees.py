"""A tree: the files of a checkpoint's folder, safetensors files taken apart into their header and their tensors.

    {"content": content id or null,
     "files": {"config.json": {"id": file id, "size": bytes},
               "model.safetensors": {"header": file id, "size": bytes, "tensors": [tensor ids in byte order]}}}

A tree may come from a stranger, so what it says is checked before it becomes a path or a tensor.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blake3 import blake3

from ..checkpoint import Header, TensorSpec, chunks, content_id_of, parse_header
from ..checkpoint.disk import INDEX, MAX_SIDE_FILE, SINGLE, check_all_there
from ..checkpoint.header import MAX_HEADER_BYTES
from ..errors import CorruptError, StoreError
from .canonical import canonical, parse_canonical
from .envelope import Head
from .objects import ID, Objects

MAX_TREE = 64 * 1024 * 1024
MAX_PATH = 4096  # bytes
# Folders that belong to a tool and hold no model: neither committed nor ever written by a checkout.
TOOLS = (".git", ".cofuse", ".cache/huggingface")
_BAD = re.compile(r"[\x00-\x1f\x7f\\]")


@dataclass(frozen=True, slots=True)
class Plain:
    """A file kept as it is."""

    id: str
    size: int


@dataclass(frozen=True, slots=True)
class Weights:
    """A safetensors file: its raw header, and its tensors in byte order."""

    header: str
    size: int
    tensors: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Tree:
    """Files by path, and the content id of the checkpoint they make (None without safetensors weights)."""

    files: Mapping[str, Plain | Weights]
    content: str | None

    def encode(self) -> bytes:
        """The bytes that are hashed."""
        files: dict[str, Any] = {}
        for path, entry in self.files.items():
            if isinstance(entry, Plain):
                files[check_path(path)] = {"id": entry.id, "size": entry.size}
            else:
                files[check_path(path)] = {
                    "header": entry.header,
                    "size": entry.size,
                    "tensors": list(entry.tensors),
                }
        _check_apart(files)
        return canonical({"content": self.content, "files": files}, "tree")

    @classmethod
    def decode(cls, raw: bytes | bytearray, where: str) -> Tree:
        """Read a tree back.

        Raises:
            CorruptError: it is not what `encode` writes, or names a path that must not be written.
        """
        match parse_canonical(raw, where):
            case {"content": content, "files": dict(files), **rest} if not rest and (
                content is None or _is_id(content)
            ):
                entries = {path: _entry(entry, f"{where}: {path[:80]!a}") for path, entry in files.items()}
            case _:
                raise CorruptError("not a tree", where=where)
        try:
            for path in entries:
                check_path(path)
            _check_apart(entries)
        except StoreError as error:
            raise CorruptError(error.what, where=where, got=error.got) from None
        return cls(entries, content)

    @property
    def id(self) -> str:
        """The id it has, kept or not."""
        data = self.encode()
        return Head("tree", len(data)).id(blake3(data[a:b]).digest() for a, b in chunks(len(data)))

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.files.values())

    def objects(self) -> list[str]:
        """Ids of everything the tree is made of, each once, in order."""
        ids: dict[str, None] = {}
        for _, entry in sorted(self.files.items()):
            ids.update(dict.fromkeys([entry.id] if isinstance(entry, Plain) else [entry.header, *entry.tensors]))
        return list(ids)


def load_tree(objects: Objects, tree_id: str) -> Tree:
    """Read and check a tree.

    Raises:
        CorruptError: it is missing or damaged.
    """
    if objects.envelope(tree_id, "tree").head.size > MAX_TREE:
        raise CorruptError("the tree is too large", where=tree_id, expected=f"at most {MAX_TREE} bytes")
    return Tree.decode(objects.read(tree_id, kind="tree"), f"tree {tree_id}")


def load_header(objects: Objects, weights: Weights, where: str) -> Header:
    """Read and validate the header of a safetensors file of a tree.

    Raises:
        CorruptError: it is missing, damaged, or does not fit the tensors listed.
        HeaderError: it is no header.
    """
    size = objects.envelope(weights.header, "file").head.size
    if size > MAX_HEADER_BYTES + 8:
        raise CorruptError("the header is too long", where=where, got=f"{size} bytes")
    raw = bytes(objects.read(weights.header, kind="file"))
    header = parse_header(raw, data_bytes=weights.size - len(raw), where=where)
    if len(header.entries) != len(weights.tensors):
        raise CorruptError(
            "the header does not fit the tree",
            where=where,
            got=f"{len(header.entries)} tensors",
            expected=len(weights.tensors),
        )
    return header


def load_plain(objects: Objects, entry: Plain, where: str) -> Head:
    """The head of a plain file's object, which must be as long as the tree says."""
    head = objects.envelope(entry.id, "file").head
    if head.size != entry.size:
        raise CorruptError("a file is not as long as its tree says", where=where, got=head.size, expected=entry.size)
    return head


def load_checked_spec(objects: Objects, tensor: str, spec: TensorSpec, where: str) -> Head:
    """The head of a tensor object, which must be of the dtype and shape that the header says."""
    head = objects.envelope(tensor, "tensor").head
    if head.spec != spec:
        raise CorruptError("a tensor does not fit its header", where=where, got=head.spec, expected=spec)
    return head


def weights_files(files: Mapping[str, Plain | Weights], index: Mapping[str, bytes]) -> list[str]:
    """Which safetensors files make the checkpoint of a folder, by the rules of `checkpoint.open_local`.

    Args:
        files: the files of the tree.
        index: the bytes of those index files that are there.
    """
    weights = sorted(p for p, entry in files.items() if isinstance(entry, Weights) and "/" not in p)
    for name in SINGLE:
        if name in weights:
            return [name]
    for name in INDEX:
        if name in index:
            try:
                listed = set(json.loads(index[name])["weight_map"].values())
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                raise StoreError("not an index of shards", where=name, expected='{"weight_map": ...}') from None
            missing = sorted(str(n) for n in listed if n not in weights)
            if missing:
                raise StoreError("a shard is missing", where=name, got=f"no {missing[0]}", hint="get the shard again")
            return [p for p in weights if p in listed]
    check_all_there([Path(path) for path in weights], Path())
    return weights


def content_of(tensors: Mapping[str, Mapping[str, str]], files: list[str]) -> str | None:
    """The content id of the tensors in `files`; None when there are no such files."""
    if not files:
        return None
    ids: dict[str, str] = {}
    for file in files:
        twice = next((name for name in tensors[file] if name in ids), None)
        if twice is not None:
            raise StoreError("tensor in two shards", where=file, got=twice)
        ids.update(tensors[file])
    return content_id_of(ids)


def load_weights(objects: Objects, tree: Tree, where: str) -> dict[str, Header]:
    """Headers of the safetensors files that make a tree's checkpoint, whose content id must be the tree's.

    Raises:
        CorruptError: something is missing or damaged, or the content id is wrong.
    """
    index = {
        name: bytes(objects.read(entry.id, kind="file"))
        for name in INDEX
        if isinstance(entry := tree.files.get(name), Plain) and entry.size <= MAX_SIDE_FILE
    }
    headers: dict[str, Header] = {}
    ids: dict[str, dict[str, str]] = {}
    files = weights_files(tree.files, index)
    for path in files:
        entry = tree.files[path]
        if isinstance(entry, Weights):
            headers[path] = load_header(objects, entry, f"{where}: {path}")
            ids[path] = dict(zip(headers[path].entries, entry.tensors, strict=True))
    content = content_of(ids, files)
    if content != tree.content:
        raise CorruptError("the tree's content id is wrong", where=where, got=tree.content, expected=content)
    return headers


def check_path(path: str) -> str:
    """Refuse a path that could leave the folder it is written into, or hide something in a terminal.

    Raises:
        StoreError: it is one of those.

    >>> check_path("1_Pooling/config.json")
    '1_Pooling/config.json'
    """
    try:
        raw = path.encode()
    except UnicodeEncodeError:
        raise StoreError("the file's name is not UTF-8", got=ascii(path[:80])) from None
    parts = path.split("/")
    if (
        len(raw) > MAX_PATH
        or _BAD.search(path)
        or any(part in ("", ".", "..") or len(part.encode()) > 255 for part in parts)
        or any(f"/{path}/".casefold().find(f"/{tool}/") >= 0 for tool in TOOLS)
    ):
        raise StoreError("a path that cannot be kept", got=ascii(path[:80]))
    return path


def _check_apart(paths: Mapping[str, object]) -> None:
    for path in paths:
        parts = path.split("/")
        for n in range(1, len(parts)):
            if "/".join(parts[:n]) in paths:
                raise StoreError("a path is both file and folder", got=ascii(path[:80]))


def _entry(entry: object, where: str) -> Plain | Weights:
    match entry:
        case {"id": str(id_), "size": int(size), **rest} if not rest and _is_id(id_) and _is_size(size):
            return Plain(id_, size)
        case {"header": str(header), "size": int(size), "tensors": list(tensors), **rest} if (
            not rest and _is_id(header) and _is_size(size) and all(map(_is_id, tensors))
        ):
            return Weights(header, size, tuple(tensors))
    raise CorruptError("not an entry of a tree", where=where)


def _is_id(value: object) -> bool:
    return isinstance(value, str) and ID.fullmatch(value) is not None


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 63
