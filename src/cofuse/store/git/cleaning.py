"""From a file's bytes, as they come, to the manifest that git keeps in its place.

git sends a file once and from front to back, without saying how long it is. A safetensors file says so itself, so its
tensors become objects while they arrive: one thread reads and hashes, the others compress and write. Anything else is
spooled to the disk first.
"""

from __future__ import annotations

import io
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from hashlib import sha256
from queue import SimpleQueue

from ...checkpoint import CHUNK, Header, TensorSpec, chunks, content_id_of, parse_header
from ...checkpoint.header import MAX_HEADER_BYTES
from ...errors import HeaderError, StoreError
from ..adding import Known
from ..envelope import Head
from ..sha256 import note_sha256
from ..store import Store
from ..trees import Plain, Tree, Weights
from ..writing import Writing, writing
from . import roots
from .manifest import MAX_MANIFEST, Manifest

# How a manifest's tree names its one file, whatever git calls it: a file that moves stays the same version. Weights have
# the name under which a folder of them opens as a checkpoint.
WEIGHTS = "model.safetensors"
MAX_THREADS = 8
_TENSORS = 4  # at a time: while one is synced, others are compressed
_WAITING = 16  # chunks that have been read and are not yet taken up: 64 MiB

ReadInto = Callable[[memoryview], int]


def clean(
    store: Store,
    readinto: ReadInto,
    *,
    size: int | None = None,
    like: Sequence[str] = (),
    where: str = "file",
    threads: int | None = None,
) -> bytes:
    """Keep a file; gives what git shall keep. It lasts once this returns.

    An empty file and a manifest stand for themselves.

    Args:
        store: where it is kept.
        readinto: fills some of a buffer with what comes next; 0 at the end.
        size: of the file in the working folder, if there is one: the tensors of a header that bears it out are stored as
            they arrive.
        like: trees of earlier versions; what did not change is recognised, what did may be kept as a delta.
        where: what errors call it.
        threads: how many compress; the processor's number when None.

    Raises:
        StoreError: it cannot be kept, or changed while it was read.
        CorruptError: it starts like a manifest and is none.
    """
    stream = _Stream(readinto)
    start = stream.peek(MAX_MANIFEST + 1)
    if not start or Manifest.parse(start, where) is not None:
        return start
    workers = min(threads or os.cpu_count() or 1, MAX_THREADS)
    header = _header(stream, size)
    with writing(store.objects, workers) as pen:
        if header is None:
            with _spool(store, stream) as spool:
                header = _whole_header(spool, stream.count)
                source = _Stream(spool.readinto)
                tree = _keep(store, pen, header, source, stream.count, like, where)
        else:
            tree = _keep(store, pen, header, stream, 0, like, where)
            if stream.peek(1):
                raise _changed(where)
        pen.sync()
        data = tree.encode()
        tree_id = pen.put_bytes(Head("tree", len(data)), data, like=like)
        pen.sync()
        # Before git hears of it, and before this writer's objects are anybody's to collect.
        roots.keep(store.objects.places, tree_id, tree)
    sha256 = stream.sha256.hexdigest()
    (entry,) = tree.files.values()
    note_sha256(store.objects, entry, sha256)
    return Manifest(tree_id, tree.content, stream.count, sha256).encode()


def _keep(
    store: Store, pen: Writing, header: Header | None, stream: _Stream, size: int, like: Sequence[str], where: str
) -> Tree:
    """Put the file's objects; gives its tree."""
    places = store.objects.places
    if header is None:
        known = Known.of(store.objects, like)
        spot = pen.put(Head("file", size), stream.pieces(size), like=known.files.get(roots.FILE, ()), where=where)
        return Tree({roots.FILE: Plain(spot, size)}, None)
    stream.take(len(header.raw))
    head_id = pen.put_bytes(Head("file", len(header.raw)), header.raw)
    known = Known.of(store.objects, like or roots.newest(places, head_id))
    ids = _put_tensors(pen, header, stream, known, where)
    weights = Weights(head_id, header.data_start + header.data_bytes, tuple(ids[name] for name in header.entries))
    return Tree({WEIGHTS: weights}, content_id_of(ids))


def _put_tensors(pen: Writing, header: Header, stream: _Stream, known: Known, where: str) -> dict[str, str]:
    room = threading.Semaphore(_WAITING)
    failed = threading.Event()
    found: dict[str, Future[str]] = {}

    def put(name: str, spec: TensorSpec, waiting: _Waiting) -> str:
        like = known.tensors.get(name, ())
        try:
            return pen.put(Head.tensor(spec), waiting.chunks(), like=like, where=f"{where}: {name}")
        except BaseException:
            failed.set()
            raise
        finally:
            waiting.drop()

    with ThreadPoolExecutor(_TENSORS) as pool:
        for name, entry in header.entries.items():
            if failed.is_set():
                break
            spec, waiting = TensorSpec(entry.dtype, entry.shape), _Waiting(room)
            found[name] = pool.submit(put, name, spec, waiting)
            try:
                for a, b in chunks(spec.nbytes):
                    room.acquire()
                    waiting.give(stream.take(b - a))
            finally:
                waiting.give(None)  # whatever happens here, nobody waits for what does not come
    return {name: future.result() for name, future in found.items()}


class _Waiting:
    """Chunks of one tensor on their way from the thread that reads to the one that stores."""

    def __init__(self, room: threading.Semaphore) -> None:
        self._room = room
        self._queue: SimpleQueue[bytearray | None] = SimpleQueue()
        self._ended = False

    def give(self, chunk: bytearray | None) -> None:
        """The next chunk; None after the last."""
        self._queue.put(chunk)

    def chunks(self) -> Iterator[bytearray]:
        while not self._ended:
            chunk = self._queue.get()
            if chunk is None:
                self._ended = True
                return
            try:
                yield chunk
            finally:
                self._room.release()

    def drop(self) -> None:
        """Let go of what a `put` that stopped early has not taken."""
        for _ in self.chunks():
            pass


class _Stream:
    """What git sends, hashed as it is taken."""

    def __init__(self, readinto: ReadInto) -> None:
        self._readinto = readinto
        self._ahead = b""  # read, and not yet taken
        self.sha256 = sha256()
        self.count = 0  # bytes taken

    def peek(self, size: int) -> bytes:
        """The next `size` bytes, fewer at the end; they stay to be taken."""
        if len(self._ahead) < size:
            self._ahead += self._read(size - len(self._ahead))
        return self._ahead[:size]

    def take(self, size: int) -> bytearray:
        """The next `size` bytes, fewer only at the end."""
        ready, self._ahead = self._ahead[:size], self._ahead[size:]
        data = bytearray(ready) + self._read(size - len(ready)) if ready else self._read(size)
        self.sha256.update(data)
        self.count += len(data)
        return data

    def pieces(self, size: int) -> Iterator[bytearray]:
        """All that is left, in the chunks of an object of `size` bytes."""
        for a, b in chunks(size):
            yield self.take(b - a)

    def _read(self, size: int) -> bytearray:
        data = bytearray(size)
        view, at = memoryview(data), 0
        while at < size and (got := self._readinto(view[at:])):
            at += got
        view.release()
        del data[at:]
        return data


def _header(stream: _Stream, size: int | None) -> Header | None:
    """The header of a safetensors file of `size` bytes, when that is what comes; nothing is taken from the stream."""
    length = int.from_bytes(stream.peek(8), "little")
    if size is None or length > min(MAX_HEADER_BYTES, size - 8):
        return None
    with suppress(HeaderError):
        return parse_header(stream.peek(8 + length), data_bytes=size - 8 - length, where="file")
    return None


def _spool(store: Store, stream: _Stream) -> io.BufferedRandom:
    """All of the stream in a file without a name, which no kill leaves behind."""
    try:
        spool = tempfile.TemporaryFile(dir=store.objects.places.staging)  # noqa: SIM115 - the caller closes it
        while data := stream.take(CHUNK):
            spool.write(data)
        spool.seek(0)
    except OSError as error:
        raise StoreError("cannot write to the store", where=store.path, got=error.strerror) from None
    return spool


def _whole_header(spool: io.BufferedRandom, size: int) -> Header | None:
    header = _header(_Stream(spool.readinto), size)
    spool.seek(0)
    return header


def _changed(where: str) -> StoreError:
    return StoreError(
        "the file was changed while git read it", where=where, hint="add it again once nothing writes to it"
    )
