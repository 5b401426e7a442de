"""A checkpoint that finds out its own ids from the bytes that others read of it: no second pass over the disk.

Whoever fuses reads every byte of every model anyway, in the processor's cache; hashing it there costs 0.14 s of a core
a gigabyte, in a pass of its own 0.18 s, and the disk's time again where the models do not fit into memory.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from blake3 import blake3

from .checkpoint import BLOCK_BYTES, Checkpoint, TensorSpec
from .identity import CHUNK, chunks, tensor_id_of
from .parallel import for_each


@dataclass(slots=True)
class _Chunk:
    """A chunk of which the first `done` bytes are hashed."""

    hasher: blake3 = field(default_factory=blake3)
    done: int = 0
    busy: bool = False  # a thread is hashing
    waiting: dict[int, bytes] = field(default_factory=dict)  # offset -> bytes that came too early


class Hashed(Checkpoint):
    """Another checkpoint, with the ids of what is read of it.

    A chunk is hashed when it is read from its start to its end, in any pieces, by any threads. Chunks that were not are
    read again by `tensor_ids`.

    Args:
        checkpoint: what is read.
        once: every byte will be read about once and about in order, as the writer does: pieces that come before what
            they follow are kept until it comes. For what is costly to read again, such as the result of a fuse.
        known: ids of tensors that need no hashing, by name; those of a checkpoint in a store are known anyway.

    >>> import torch
    >>> from cofuse.checkpoint import Memory, content_id
    >>> model = Memory({"x": torch.zeros(2), "y": torch.ones(2)})
    >>> watched = Hashed(model)
    >>> _ = watched.read("y")
    >>> watched.used(), content_id(watched) == content_id(model)
    (('y',), True)
    """

    def __init__(self, checkpoint: Checkpoint, *, once: bool = False, known: Mapping[str, str] | None = None) -> None:
        self.checkpoint = checkpoint
        self._once = once
        stored = getattr(checkpoint, "tensor_ids", None)
        self._ids: dict[str, str] = dict((stored() if stored is not None else known) or {})
        self._read: set[str] = set()
        self._chunks: dict[tuple[str, int], _Chunk] = {}
        self._digests: dict[tuple[str, int], bytes] = {}
        self._lock = threading.Lock()

    # The checkpoint as it is

    def names(self) -> tuple[str, ...]:
        return self.checkpoint.names()

    def spec(self, name: str) -> TensorSpec:
        return self.checkpoint.spec(name)

    def blocks(self, name: str, size: int = BLOCK_BYTES) -> Iterator[tuple[int, int]]:
        return self.checkpoint.blocks(name, size)

    @property
    def files(self) -> Mapping[str, bytes]:
        return self.checkpoint.files

    @property
    def metadata(self) -> Mapping[str, str]:
        return self.checkpoint.metadata

    @property
    def aliases(self) -> Mapping[str, str]:
        return self.checkpoint.aliases

    @property
    def where(self) -> str:
        return self.checkpoint.where

    def read_bytes(self, name: str, start: int = 0, stop: int | None = None) -> bytes | bytearray | memoryview:
        data = self.checkpoint.read_bytes(name, start, stop)
        self._see(name, start, memoryview(data))
        return data

    def read_into(self, name: str, start: int, out: memoryview) -> None:
        self.checkpoint.read_into(name, start, out)
        self._see(name, start, out)

    # What was found out

    def used(self) -> tuple[str, ...]:
        """The tensors that something was read of, in order."""
        return tuple(n for n in self.names() if n in self._read)

    def known_ids(self) -> dict[str, str]:
        """The ids of tensors that are known without reading any more."""
        return dict(self._ids)

    def tensor_ids(self, names: Iterable[str] | None = None, threads: int | None = None) -> dict[str, str]:
        """The ids of tensors (all when None) by name; what was not read whole yet is read now."""
        wanted = tuple(self.names() if names is None else names)
        unknown = [name for name in wanted if name not in self._ids]
        missing = [
            (name, a, b)
            for name in unknown
            for a, b in chunks(self.spec(name).nbytes)
            if (name, a // CHUNK) not in self._digests
        ]

        def read(job: tuple[str, int, int]) -> None:
            name, start, stop = job
            self._digests[name, start // CHUNK] = blake3(self.checkpoint.read_bytes(name, start, stop)).digest()

        for_each(read, missing, threads or os.cpu_count() or 1)
        for name in unknown:
            spec = self.spec(name)
            self._ids[name] = tensor_id_of(
                spec, (self._digests.pop((name, a // CHUNK)) for a, _ in chunks(spec.nbytes))
            )
        return {name: self._ids[name] for name in wanted}

    def _see(self, name: str, start: int, data: memoryview) -> None:
        name = self.resolve(name)
        if not len(data):
            return
        self._read.add(name)
        if name in self._ids:
            return
        size = self.spec(name).nbytes
        stop = start + len(data)
        for number in range(start // CHUNK, -(-stop // CHUNK)):
            first = number * CHUNK
            low, high = max(start, first), min(stop, first + CHUNK)
            self._hash((name, number), min(CHUNK, size - first), low - first, data[low - start : high - start])

    def _hash(self, key: tuple[str, int], size: int, offset: int, data: memoryview) -> None:
        with self._lock:
            if key in self._digests:
                return
            chunk = self._chunks.get(key)
            again = chunk is not None and chunk.done and not chunk.busy and not self._once
            if offset == 0 and again:
                chunk = None  # an earlier reader (a survey, in threads) went on elsewhere; this one may read on
            if chunk is None:
                if offset and not self._once:
                    return
                chunk = self._chunks[key] = _Chunk()
            if chunk.busy or offset != chunk.done:
                if self._once and offset >= chunk.done:
                    chunk.waiting[offset] = bytes(data)
                return
            chunk.busy = True
        more: memoryview | bytes | None = data
        while more is not None:
            chunk.hasher.update(more)
            with self._lock:
                chunk.done += len(more)
                if chunk.done == size:
                    self._digests[key] = chunk.hasher.digest()
                    self._chunks.pop(key, None)
                    return
                more = chunk.waiting.pop(chunk.done, None)
                chunk.busy = more is not None
