"""Writing a checkpoint: files sized first, threads write their tensors in place, then fsync and rename.

The layout of a safetensors file follows from names, dtypes and shapes alone, so every block knows its place in the
file before any block is computed, and the result is the same bytes for any number of threads. A folder appears whole
or not at all: it is built under a temporary name beside its place.
"""

from __future__ import annotations

import errno
import json
import os
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import CheckpointError
from ..progress import SILENT, Progress
from .checkpoint import BLOCK_BYTES, Checkpoint, TensorSpec
from .disk import SIDE_ENDINGS, is_weights
from .durable import building, explained, write_synced
from .header import Header, build_header
from .parallel import for_each

# How much is written before it is sent to the disk.
FLUSH_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Written:
    """What a save wrote."""

    folder: Path
    bytes: int
    tensors: int
    shards: int


@dataclass(frozen=True, slots=True)
class Layout:
    """Files to write: each safetensors file's header, and the index where there are several."""

    headers: Mapping[str, Header]
    index: bytes | None = None
    homes: Mapping[str, str] = field(default_factory=dict)  # tensor -> file


def plan_layout(
    specs: Mapping[str, TensorSpec], metadata: Mapping[str, str], max_shard_bytes: int | None = None
) -> Layout:
    """Where each tensor goes; pure.

    Shards are filled in the order given, as transformers does: a tensor that does not fit opens the next one.

    >>> spec = TensorSpec("F32", (4,))
    >>> sorted(plan_layout({"a": spec, "b": spec}, {}, max_shard_bytes=16).headers)
    ['model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors']
    """
    groups: list[dict[str, TensorSpec]] = [{}]
    filled = 0
    for name, spec in specs.items():
        if max_shard_bytes is not None and filled and filled + spec.nbytes > max_shard_bytes:
            groups.append({})
            filled = 0
        groups[-1][name] = spec
        filled += max(0, spec.nbytes)
    if len(groups) == 1:
        header = build_header(groups[0], metadata)
        return Layout({"model.safetensors": header}, None, dict.fromkeys(specs, "model.safetensors"))
    homes: dict[str, str] = {}
    headers: dict[str, Header] = {}
    for i, group in enumerate(groups, 1):
        file = f"model-{i:05d}-of-{len(groups):05d}.safetensors"
        # Each shard may name only its own tied tensors, so that it is a whole file by itself.
        own = {k: v for k, v in metadata.items() if v in group or v not in specs}
        headers[file] = build_header(group, own)
        homes.update(dict.fromkeys(group, file))
    total = sum(spec.nbytes for spec in specs.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(homes.items()))}
    return Layout(headers, json.dumps(index, indent=2).encode() + b"\n", homes)


def save(
    checkpoint: Checkpoint,
    folder: str | Path,
    *,
    max_shard_bytes: int | None = None,
    threads: int | None = None,
    progress: Progress = SILENT,
    block: int = BLOCK_BYTES,
    durable: bool = True,
    last: Callable[[], Mapping[str, bytes]] | None = None,
) -> Written:
    """Write a checkpoint as safetensors, streaming; memory is about two blocks a thread and input.

    Args:
        checkpoint: what to write; a lazy one is computed block by block, by the same threads.
        folder: where; a folder that exists is replaced whole once the new one is safe on disk, and only when it is
            empty or holds a checkpoint and nothing else.
        max_shard_bytes: start a new file when one would exceed this; one file when None.
        threads: how many; the processor's number when None. The bytes do not depend on it.
        progress: told of every block written.
        block: bytes a thread handles at a time.
        durable: whether it must survive a power cut. Without it the files are not fsynced: after a cut they may be
            there with bytes missing, so this is for what can be made again and is checked before it is used.
        last: called when every tensor is written; gives files that could not be made before (a record of what was
            read), which take the place of the checkpoint's own of the same name.

    Raises:
        CheckpointError: nothing can be written there (a full disk among others); what was there is untouched.
    """
    folder = Path(folder)
    specs = {name: checkpoint.spec(name) for name in checkpoint.names()}
    own = {k: v for k, v in checkpoint.metadata.items() if k not in specs}
    metadata = {"format": "pt", **own, **checkpoint.aliases}
    layout = plan_layout(specs, metadata, max_shard_bytes)
    refuse_to_replace(folder)
    write = write_synced if durable else _write_new
    with building(folder) as temporary:
        for name, data in checkpoint.files.items():
            if not name or Path(name).name != name or name.startswith(".") or "\0" in name:
                raise CheckpointError("not a name for a file", where=checkpoint.where, got=ascii(name[:80]))
            write(temporary / name, data)
        if layout.index is not None:
            write(temporary / "model.safetensors.index.json", layout.index)
        total = sum(h.data_start + h.data_bytes for h in layout.headers.values())
        bar = progress.bar(f"writing {folder.name}", total, "B")
        with _Places(temporary, layout, durable) as places:
            jobs = (
                (name, start, stop)
                for name in _reading_order(checkpoint, layout)
                for start, stop in checkpoint.blocks(name, block)
            )

            def copy(job: tuple[str, int, int]) -> None:
                name, start, stop = job
                data = checkpoint.read_bytes(name, start, stop)
                if len(data) != stop - start:
                    raise CheckpointError(
                        "tensor gave another number of bytes than asked for",
                        where=f"{checkpoint.where}: {name}",
                        got=len(data),
                        expected=stop - start,
                    )
                places.write(name, start, data)
                bar.advance(stop - start)

            for_each(copy, jobs, threads or os.cpu_count() or 1)
            for name, data in last().items() if last is not None else ():
                (temporary / name).unlink(missing_ok=True)
                write(temporary / name, data)
            if durable:
                places.sync()
    return Written(folder, total, len(specs), len(layout.headers))


def _write_new(path: Path, data: bytes) -> None:
    with open(path, "xb") as file:
        file.write(data)


def _reading_order(checkpoint: Checkpoint, layout: Layout) -> Iterator[str]:
    # The order of the output file: both sides of a copy are then sequential.
    for header in layout.headers.values():
        yield from header.entries


def refuse_to_replace(folder: Path) -> None:
    """Refuse a folder that holds anything but a checkpoint.

    Raises:
        CheckpointError: names what stands there.
    """
    with explained(folder):
        if folder.exists() and not folder.is_dir():
            raise CheckpointError("the output is a file", where=folder, expected="a folder")
        found = sorted(folder.iterdir()) if folder.is_dir() else []
        # Replacing removes everything in it: a training run's state or a git folder beside the weights must not go.
        other = next((p for p in found if not p.is_file() or not (is_weights(p) or p.suffix in SIDE_ENDINGS)), None)
        if found and (other is not None or not any(map(is_weights, found))):
            raise CheckpointError(
                "the folder holds other things",
                where=folder,
                got=(other or found[0]).name,
                expected="a new or empty folder, or one that holds a checkpoint and nothing else",
            )


class _Places:
    """Open output files, sized before anything is written into them.

    What is written is sent to the disk while the rest is computed: waiting for a gigabyte at the end takes as long as
    merging it.
    """

    def __init__(self, folder: Path, layout: Layout, durable: bool) -> None:
        self._layout = layout
        self._fds: dict[str, int] = {}
        self._folder = folder
        self._durable = durable
        self._writing = threading.Lock()
        self._flusher = ThreadPoolExecutor(1)
        self._flushing: Future[None] | None = None
        self._unflushed: defaultdict[int, int] = defaultdict(int)  # file descriptor -> bytes

    def __enter__(self) -> _Places:
        try:
            _refuse_full(self._folder, sum(h.data_start + h.data_bytes for h in self._layout.headers.values()))
            for file, header in self._layout.headers.items():
                fd = os.open(self._folder / file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
                self._fds[file] = fd
                os.ftruncate(fd, header.data_start + header.data_bytes)
                _write_at(fd, header.raw, 0)
        except BaseException:
            self.__exit__()
            raise
        return self

    def write(self, name: str, start: int, data: bytes | bytearray | memoryview) -> None:
        file = self._layout.homes[name]
        header = self._layout.headers[file]
        fd = self._fds[file]
        # One thread at a time: a file is written under the kernel's lock anyway, for which others wait at work.
        with self._writing:
            _write_at(fd, data, header.data_start + header.entries[name].start + start)
            self._unflushed[fd] += len(data)
            free = self._flushing is None or self._flushing.done()
            if self._durable and free and self._unflushed[fd] >= FLUSH_BYTES:
                self._unflushed[fd] = 0
                self._flushed()
                self._flushing = self._flusher.submit(os.fdatasync, fd)

    def sync(self) -> None:
        self._flushed()
        for fd in self._fds.values():
            os.fsync(fd)

    def _flushed(self) -> None:
        """Raise what went wrong in the flush before: the disk says it only once."""
        if self._flushing is not None:
            self._flushing.result()

    def __exit__(self, *_: object) -> None:
        self._flusher.shutdown()
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()


def _refuse_full(folder: Path, size: int) -> None:
    """Find out about a full disk before any work is done.

    Without reserving the bytes: ext4 takes five times as long to fill reserved pages as fresh ones.

    Raises:
        OSError: as the write that would not fit.
    """
    if hasattr(os, "statvfs"):
        disk = os.statvfs(folder)
        if disk.f_bavail * disk.f_frsize < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _write_at(fd: int, data: bytes | bytearray | memoryview, offset: int) -> None:
    view = memoryview(data)
    while view:
        done = os.pwrite(fd, view, offset)
        view, offset = view[done:], offset + done
