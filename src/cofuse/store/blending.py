"""The result of a merge, lazy: tensors that a version has keep their ids and are not read, the others are computed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from ..checkpoint import Checkpoint, Hashed, Header, Source, View, content_id_of, file_id, for_each
from ..progress import SILENT, Progress
from .adding import _tensor_reader
from .codecs import Bytes
from .envelope import Head
from .parts import Part
from .trees import Plain, Tree, Weights
from .writing import Writing

Ids = Mapping[str, Mapping[str, str]]  # part -> tensor -> id


@dataclass(slots=True)
class Report:
    """What a merge does.

    Attributes:
        ours, theirs: how many tensors and files that side alone changed.
        fused: the tensors that are fused, by name.
        settled: what was taken from one side because somebody said so, by name: `ours` or `theirs`.
        notes: what somebody should know although nothing is wrong.
    """

    ours: int = 0
    theirs: int = 0
    fused: list[str] = field(default_factory=list)
    settled: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class Excerpt(View):
    """Some tensors of a part, with their ids."""

    def __init__(self, part: Part, names: Iterable[str]) -> None:
        super().__init__({name: Source(part, name) for name in names}, where=part.where)
        self._part = part

    def tensor_ids(self) -> dict[str, str]:
        """The id of every tensor, by name; known without reading."""
        ids = self._part.tensor_ids()
        return {name: ids[name] for name in self.names()}


class Blend(View):
    """A part of the result: each tensor as a version has it, or fused; and the headers of the files they go into."""

    def __init__(
        self, sources: Mapping[str, Source], ties: Mapping[str, str], headers: Mapping[str, Header], where: str
    ) -> None:
        super().__init__(sources, aliases=ties, where=where)
        self.headers = headers

    def known_ids(self) -> dict[str, str]:
        """The ids of what is not fused, by name."""
        return {
            name: source.checkpoint.tensor_ids()[source.name]
            for name, source in self.sources.items()
            if isinstance(source.checkpoint, Part)
        }

    def fused(self) -> Checkpoint | None:
        """What is not known yet; None where nothing is fused."""
        return next((s.checkpoint for s in self.sources.values() if not isinstance(s.checkpoint, Part)), None)


@dataclass(frozen=True, slots=True)
class Merged:
    """The result of a merge, before anything of it is computed.

    Attributes:
        files: those that are no weights.
        blends: the parts with weights, by name; "" is the checkpoint itself, the others are called as their file.
        report: what is done.
    """

    files: Mapping[str, Plain]
    blends: Mapping[str, Blend]
    report: Report

    def put(self, writing: Writing, safe: Tree, *, threads: int = 1, progress: Progress = SILENT) -> tuple[str, Tree]:
        """Compute and keep it; gives the tree's id, and the tree.

        Args:
            writing: where to.
            safe: the tree of a commit that the result will have as a parent, and a ref has already: what it is made of
                lasts, so that of a hundred thousand tensors only those are looked after that are new to the branch.
            threads: how many.
            progress: told of every chunk.

        Raises:
            FuseError: a value is not finite.
            CorruptError: something of the versions is missing or damaged.
        """
        ids = {group: blend.known_ids() for group, blend in self.blends.items()}
        lasting = set(safe.objects())
        taken = [*(i for held in ids.values() for i in held.values()), *(entry.id for entry in self.files.values())]
        for object_id in dict.fromkeys(taken):
            if object_id not in lasting:
                writing.rely_on(object_id)
        jobs = [(group, fused, name) for group, fused in self._fused() for name in fused.names()]
        bar = progress.bar("merging", sum(fused.spec(name).nbytes for _, fused, name in jobs), "B")

        def put(job: tuple[str, Checkpoint, str]) -> None:
            group, fused, name = job

            def counted() -> Iterator[Bytes]:
                for chunk in _tensor_reader(fused, name)():
                    yield chunk
                    bar.advance(len(chunk))

            # Kept beside what it was fused from, where that takes fewer bytes.
            like = [part.tensor_ids()[name] for part in getattr(fused, "checkpoints", ()) if isinstance(part, Excerpt)]
            ids[group][name] = writing.put(Head.tensor(fused.spec(name)), counted(), like=like, where=name)

        for_each(put, jobs, threads)
        tree = self._tree(ids, lambda raw: writing.put_bytes(Head("file", len(raw)), raw))
        writing.sync()
        data = tree.encode()
        return writing.put_bytes(Head("tree", len(data)), data), tree

    def tree(self, *, threads: int = 1, progress: Progress = SILENT) -> Tree:
        """Compute it and keep nothing: the tree as `put` would make it."""
        from ..fuse.replay import read_through

        ids = {group: blend.known_ids() for group, blend in self.blends.items()}
        for group, fused in self._fused():
            seen = Hashed(fused, once=True)
            read_through(seen, threads, progress)
            ids[group] |= seen.tensor_ids()
        return self._tree(ids, file_id)

    def _fused(self) -> Iterator[tuple[str, Checkpoint]]:
        for group, blend in self.blends.items():
            if (fused := blend.fused()) is not None:
                yield group, fused

    def _tree(self, ids: Ids, header_id: Callable[[bytes], str]) -> Tree:
        files: dict[str, Plain | Weights] = dict(self.files)
        for group, blend in self.blends.items():
            for path, header in blend.headers.items():
                tensors = tuple(ids[group][name] for name in header.entries)
                files[path] = Weights(header_id(header.raw), header.data_start + header.data_bytes, tensors)
        return Tree(files, content_id_of(ids[""]) if "" in ids else None)
