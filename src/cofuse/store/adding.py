"""Turning a folder, or a checkpoint, into a tree: every tensor and file becomes an object, in threads."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..checkpoint import CHUNK, Checkpoint, Header, SafetensorsFile, TensorSpec, chunks, for_each, plan_layout
from ..checkpoint.disk import INDEX, MAX_SIDE_FILE
from ..errors import CofuseError, StoreError
from ..progress import SILENT, Progress
from .checkpoint import StoreCheckpoint
from .codecs import Bytes
from .envelope import Head
from .objects import Objects
from .trees import TOOLS, Plain, Tree, Weights, check_path, content_of, load_header, load_tree, weights_files
from .writing import Writing


@dataclass(frozen=True, slots=True)
class Known:
    """What earlier trees hold, so that what did not change costs nothing, and what did is kept as a delta.

    Ids of what is there under a name, those of the first tree first.
    """

    trees: Sequence[str] = ()
    files: Mapping[str, Sequence[str]] = field(default_factory=dict)  # by path; headers of weights too
    tensors: Mapping[str, Sequence[str]] = field(default_factory=dict)  # by name

    @classmethod
    def of(cls, objects: Objects, trees: Iterable[str]) -> Known:
        """Names and ids of trees; those that are damaged are left out."""
        sound: dict[str, None] = {}
        files: dict[str, dict[str, None]] = {}
        tensors: dict[str, dict[str, None]] = {}
        for tree in trees:
            with contextlib.suppress(CofuseError):  # a damaged version must not keep a good one from being stored
                for path, entry in load_tree(objects, tree).files.items():
                    if isinstance(entry, Plain):
                        files.setdefault(path, {})[entry.id] = None
                        continue
                    files.setdefault(path, {})[entry.header] = None
                    for name, tensor in zip(load_header(objects, entry, path).entries, entry.tensors, strict=True):
                        tensors.setdefault(name, {})[tensor] = None
                sound[tree] = None
        return cls(
            tuple(sound), {p: tuple(ids) for p, ids in files.items()}, {n: tuple(ids) for n, ids in tensors.items()}
        )


@dataclass(frozen=True, slots=True)
class Change:
    """A tree as another one with some of its files replaced, added or left out.

    Attributes:
        places: where the new bytes are, by path.
        kept: entries that stay, by path; those of `places` win. Of these not a tensor is read; whoever writes relies on
            the tree that they are from.
    """

    places: Mapping[str, Path]
    kept: Mapping[str, Plain | Weights]


@dataclass(frozen=True, slots=True)
class _Job:
    """One object to be put, and who wants its id."""

    where: str
    head: Head
    read: Callable[[], Iterator[Bytes]]
    like: Sequence[str]
    give: Callable[[str], None]


def add(
    writing: Writing,
    objects: Objects,
    source: Checkpoint | Path | Change,
    known: Known,
    *,
    threads: int | None = None,
    progress: Progress = SILENT,
) -> str:
    """Keep a folder or a checkpoint; gives the id of its tree.

    A folder is kept with every byte of every file. A checkpoint is kept as `Checkpoint.save` would write it into one
    file, so that committing it, or committing what it saved, gives one tree. A `Change` is kept as a folder would be.

    Raises:
        StoreError: something in the folder cannot be kept, or the store cannot be written.
        CheckpointError: the source cannot be read, or a safetensors file in it is damaged.
    """
    scan: _Source
    if isinstance(source, Change):
        scan = _Changed(objects, source, known)
    else:
        scan = _Folder(source, known) if isinstance(source, Path) else _Lazy(writing, source, known)
    jobs = list(scan.jobs())
    bar = progress.bar("storing", sum(job.head.size for job in jobs), "B")

    def put(job: _Job) -> None:
        def counted() -> Iterator[Bytes]:
            for chunk in job.read():
                yield chunk
                bar.advance(len(chunk))

        job.give(writing.put(job.head, counted(), like=job.like, where=job.where))

    for_each(put, jobs, threads or os.cpu_count() or 1)
    tree = scan.tree()
    writing.sync()
    data = tree.encode()
    return writing.put_bytes(Head("tree", len(data)), data, like=known.trees)


class _Source:
    """What a source's objects are, and the tree they make once their ids are known."""

    def __init__(self, known: Known) -> None:
        self.known = known
        self.plain: dict[str, Plain] = {}
        self.headers: dict[str, tuple[Header, str]] = {}  # path -> header, id of its object
        self.tensors: dict[str, dict[str, str]] = {}  # path -> name -> id
        self.index: dict[str, bytes] = {}

    def file(self, path: str, size: int, read: Callable[[], Iterator[Bytes]]) -> _Job:
        def give(object_id: str) -> None:
            self.plain[path] = Plain(object_id, size)

        return _Job(path, Head("file", size), read, self.known.files.get(path, ()), give)

    def header(self, path: str, header: Header) -> _Job:
        self.tensors[path] = {}

        def give(object_id: str) -> None:
            self.headers[path] = (header, object_id)

        return _Job(
            path, Head("file", len(header.raw)), _bytes_reader(header.raw), self.known.files.get(path, ()), give
        )

    def tensor(self, path: str, name: str, spec: TensorSpec, read: Callable[[], Iterator[Bytes]]) -> _Job:
        def give(object_id: str) -> None:
            self.tensors[path][name] = object_id

        return _Job(f"{path}: {name}", Head.tensor(spec), read, self.known.tensors.get(name, ()), give)

    def entries(self) -> dict[str, Plain | Weights]:
        """What was put, by path."""
        files: dict[str, Plain | Weights] = dict(self.plain)
        for path, (header, object_id) in self.headers.items():
            ids = tuple(self.tensors[path][name] for name in header.entries)
            files[path] = Weights(object_id, header.data_start + header.data_bytes, ids)
        return files

    def tree(self) -> Tree:
        files = self.entries()
        return Tree(files, content_of(self.tensors, weights_files(files, self.index)))


class _Files(_Source):
    """Files on disk, by the paths that they get, and entries of another tree that stay as they are."""

    def __init__(self, places: Mapping[str, Path], known: Known) -> None:
        super().__init__(known)
        self.places = places

    def jobs(self) -> Iterator[_Job]:
        try:
            for path, place in sorted(self.places.items()):
                yield from self._jobs_of(check_path(path), place)
        except OSError as error:
            raise StoreError("cannot read a file", where=error.filename, got=error.strerror) from None

    def _jobs_of(self, path: str, place: Path) -> Iterator[_Job]:
        if path.endswith(".safetensors"):
            file = SafetensorsFile(place)
            yield self.header(path, file.header)
            for name in file.names():
                yield self.tensor(path, name, file.spec(name), _tensor_reader(file, name))
            return
        size = place.stat().st_size
        if path in INDEX and size <= MAX_SIDE_FILE:
            self.index[path] = place.read_bytes()
        yield self.file(path, size, _file_reader(place, size))


class _Folder(_Files):
    """A folder on disk."""

    def __init__(self, folder: Path, known: Known) -> None:
        if not folder.is_dir():
            raise StoreError("no such folder", where=folder)
        try:
            super().__init__(dict(_walk(folder)), known)
        except OSError as error:
            raise StoreError("cannot read the folder", where=error.filename or folder, got=error.strerror) from None


class _Changed(_Files):
    """A tree of which some files are changed; the others are neither read nor written."""

    def __init__(self, objects: Objects, change: Change, known: Known) -> None:
        super().__init__(change.places, known)
        self.objects = objects
        self.kept = {path: entry for path, entry in change.kept.items() if path not in change.places}

    def tree(self) -> Tree:
        for path, entry in self.kept.items():
            if isinstance(entry, Weights):
                names = load_header(self.objects, entry, path).entries
                self.tensors[path] = dict(zip(names, entry.tensors, strict=True))
            elif path in INDEX and entry.size <= MAX_SIDE_FILE:
                self.index[path] = bytes(self.objects.read(entry.id, kind="file"))
        made = self.entries() | self.kept
        try:
            content = content_of(self.tensors, weights_files(made, self.index))
        except CofuseError:
            content = None  # shards that are still to come: the version can be kept, not opened
        return Tree(made, content)


class _Lazy(_Source):
    """A checkpoint, computed as it is read."""

    def __init__(self, writing: Writing, checkpoint: Checkpoint, known: Known) -> None:
        super().__init__(known)
        self.writing = writing
        self.checkpoint = checkpoint

    def jobs(self) -> Iterator[_Job]:
        cp, path = self.checkpoint, "model.safetensors"
        specs = {name: cp.spec(name) for name in cp.names()}
        # The metadata that `writer.save` writes.
        own = {k: v for k, v in cp.metadata.items() if k not in specs}
        header = plan_layout(specs, {"format": "pt", **own, **cp.aliases}).headers[path]
        yield self.header(path, header)
        for name in sorted(cp.files):
            if name.endswith(".safetensors"):
                raise StoreError("a checkpoint's small file cannot hold weights", where=cp.where, got=ascii(name[:80]))
            data = cp.files[name]
            yield self.file(check_path(name), len(data), _bytes_reader(data))
        ids = cp.tensor_ids() if isinstance(cp, StoreCheckpoint) and cp.root == self.writing.root else {}
        for name in header.entries:
            if name in ids:  # it came from this store: nothing to read
                self.writing.rely_on(ids[name])
                self.tensors[path][name] = ids[name]
            else:
                yield self.tensor(path, name, specs[name], _tensor_reader(cp, name))


def _tensor_reader(checkpoint: Checkpoint, name: str) -> Callable[[], Iterator[Bytes]]:
    def read() -> Iterator[Bytes]:
        # In the ranges that the checkpoint likes to be read in: a computed one may need whole tensors.
        return _cut(checkpoint.read_bytes(name, a, b) for a, b in checkpoint.blocks(name, CHUNK))

    return read


def _bytes_reader(data: bytes) -> Callable[[], Iterator[Bytes]]:
    return lambda: _cut(iter([data]))


def _file_reader(path: Path, size: int) -> Callable[[], Iterator[Bytes]]:
    def read() -> Iterator[Bytes]:
        try:
            with open(path, "rb", buffering=0) as file:
                for start, stop in chunks(size):
                    data = bytearray(stop - start)
                    got = file.readinto(data)
                    yield memoryview(data)[:got]
                if rest := file.read(1):
                    yield rest  # it has grown: refused as one piece too many
        except OSError as error:
            raise StoreError("cannot read a file", where=path, got=error.strerror) from None

    return read


def _cut(pieces: Iterator[Bytes]) -> Iterator[Bytes]:
    """The same bytes in pieces of exactly one chunk, but for the last; pieces that fit are not copied."""
    rest = bytearray()
    for piece in pieces:
        view = memoryview(piece)
        while view:
            if not rest and len(view) >= CHUNK:
                yield view[:CHUNK]
                view = view[CHUNK:]
                continue
            missing = CHUNK - len(rest)
            rest += view[:missing]
            view = view[missing:]
            if len(rest) == CHUNK:
                yield rest
                rest = bytearray()
    if rest:
        yield rest


def _walk(folder: Path) -> Iterator[tuple[str, Path]]:
    """All files below a folder, by path."""
    stack = [("", folder)]
    while stack:
        prefix, here = stack.pop()
        for place in here.iterdir():
            path = prefix + place.name
            if any(f"/{path}".endswith(f"/{tool}") for tool in TOOLS):
                continue
            mode = place.stat().st_mode if place.exists() else 0
            if place.is_symlink() and stat.S_ISDIR(mode):
                raise StoreError(
                    "a link to a folder cannot be kept", where=place, hint="put the files there themselves"
                )
            if stat.S_ISDIR(mode):
                stack.append((path + "/", place))
            elif stat.S_ISREG(mode):
                yield check_path(path), place
            else:
                raise StoreError("neither file nor folder", where=place, hint="a broken link, or a device?")
