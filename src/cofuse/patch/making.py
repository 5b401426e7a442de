"""Making a patch from a base and what was tuned from it, chunk by chunk, in threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from blake3 import blake3

from ..checkpoint import Checkpoint, Hashed, TensorSpec, content_id_of, for_each, tensor_id_of
from ..checkpoint.bitcode import as_bits
from ..checkpoint.floats import FLOATS
from ..errors import PatchError
from ..progress import SILENT, Progress
from .edits import ADD, PUT, XOR, shortest
from .manifest import Change, Manifest, changed_files, check_file, chunk_range, chunks_of, told
from .masks import Mask
from .measuring import Measured, sums
from .patch import Patch
from .products import Product
from .writing import Draft


class Way:
    """How much of a change a patch keeps, and in which form: all of it, bit for bit. Others override this.

    Attributes:
        finite: whether a value that is not finite is refused, because the way ranks or multiplies values.
    """

    finite: ClassVar[bool] = False

    def says(self) -> str:
        """The way in words."""
        return "exact"

    def mask(self, pair: Pair, names: Iterable[str]) -> Mask | None:
        """The values of floats that may change; None for all."""
        return None

    def product(self, pair: Pair, name: str) -> Product | None:
        """The change of a float of two dimensions or more, as a product; None where its edits are kept."""
        return None

    def prefers(self, product: Product, stored: int) -> bool:
        """Whether a product goes before edits of so many bytes, which leave nothing out."""
        return True

    def settled(self, manifest: Manifest) -> Manifest:
        """The manifest with what is known besides."""
        return manifest


@dataclass(slots=True)
class Pair:
    """A base and what was tuned from it, name by name.

    Attributes:
        edited: in both, of one dtype and shape.
        new: of the tuned model alone, or of another dtype or shape.
        removed: of the base alone.
    """

    base: Hashed
    tuned: Hashed
    threads: int
    progress: Progress
    edited: dict[str, TensorSpec] = field(default_factory=dict)
    new: dict[str, TensorSpec] = field(default_factory=dict)
    removed: tuple[str, ...] = ()

    @classmethod
    def of(cls, base: Checkpoint, tuned: Checkpoint, threads: int | None, progress: Progress) -> Pair:
        """Two checkpoints, their ids found while they are read."""
        pair = cls(_hashed(base), _hashed(tuned), threads or os.cpu_count() or 1, progress)
        before = {name: base.spec(name) for name in base.names()}
        for name in tuned.names():
            spec = tuned.spec(name)
            (pair.edited if before.get(name) == spec else pair.new)[name] = spec
        pair.removed = tuple(sorted(set(before) - set(tuned.names())))
        return pair

    def unequal(self) -> dict[str, TensorSpec]:
        """The edited tensors but for those whose ids are known, and equal."""
        before, after = self.base.known_ids(), self.tuned.known_ids()
        return {n: s for n, s in self.edited.items() if n not in before or before[n] != after.get(n)}

    def each_chunk(self, what: str, specs: Mapping[str, TensorSpec], work: Callable[[str, int], None]) -> None:
        """Call `work` on every chunk of these tensors, in threads."""
        bar = self.progress.bar(what, sum(spec.nbytes for spec in specs.values()), "B")

        def run(job: tuple[str, int]) -> None:
            start, stop = chunk_range(specs[job[0]], job[1])
            work(*job)
            bar.advance(stop - start)

        for_each(run, ((name, i) for name in specs for i in chunks_of(specs[name])), self.threads)


EXACT = Way()


def make(
    base: Checkpoint,
    tuned: Checkpoint,
    out: str | Path,
    way: Way = EXACT,
    *,
    values: bool = False,
    threads: int | None = None,
    progress: Progress = SILENT,
) -> Patch:
    """Write the patch that turns `base` into `tuned`, or into what `way` keeps of it.

    Tensors that come, go, or change dtype or shape, kinds of numbers that have no norm, tied names and small files are
    always kept exactly.

    Args:
        base: what it is to be applied to.
        tuned: what it is to give.
        out: the file, ending in `.patch`; its bytes do not depend on `threads`.
        way: `Way()` (exact), `Sparse(...)`, `LowRank(...)`.
        values: keep new values only, no differences of bits: longer, but the patch can be tried on another base.
        threads: how many; the processor's number when None.
        progress: told of every chunk.

    Raises:
        PatchError: a value is not finite where the patch is to be approximate; the settings are no settings.
        CheckpointError: something cannot be read or written.
    """
    pair = Pair.of(base, tuned, threads, progress)
    made = _Making(pair, way, (PUT,) if values else (PUT, ADD, XOR))
    with Draft(out) as draft:
        made.edits(draft)
        products = made.products(draft)
        files, removed_files = changed_files(base.files, tuned.files)
        for name in files:
            check_file(name, tuned.where)
        draft.add_files(files)
        manifest = Manifest(
            base=content_id_of(pair.base.tensor_ids(threads=pair.threads)),
            tuned=content_id_of(pair.tuned.tensor_ids(threads=pair.threads)),
            result=content_id_of(made.result_ids()),
            made=told(way.says()),
            tensors=made.changes(draft, products),
            removed=pair.removed,
            aliases=None if dict(base.aliases) == dict(tuned.aliases) else dict(tuned.aliases),
            metadata=None if dict(base.metadata) == dict(tuned.metadata) else dict(tuned.metadata),
            files={name: len(data) for name, data in files.items()},
            removed_files=removed_files,
        )
        return draft.finish(way.settled(manifest))


class _Making:
    def __init__(self, pair: Pair, way: Way, whats: tuple[int, ...]) -> None:
        self.pair, self.way, self.whats = pair, way, whats
        self.measured = Measured()
        self._digests: dict[tuple[str, int], bytes] = {}  # of chunks that are not the tuned model's
        self.specs = {**pair.unequal(), **pair.new}

    def edits(self, draft: Draft) -> None:
        """Every chunk's edit."""
        pair = self.pair
        floats = {n: s for n, s in pair.edited.items() if s.dtype in FLOATS}
        mask = self.way.mask(pair, floats)

        def edit(name: str, number: int) -> None:
            spec = self.specs[name]
            start, stop = chunk_range(spec, number)
            before = None if name in pair.new else pair.base.read_bytes(name, start, stop)
            after = result = pair.tuned.read_bytes(name, start, stop)
            new = as_bits(after, spec.dtype)
            old = None if before is None else as_bits(before, spec.dtype)
            if mask is not None and old is not None and name in floats:
                kept = np.where(mask.keep(name, number), new, old)
                if not np.array_equal(kept, new):
                    new, result = kept, kept.tobytes()
                    self._digests[name, number] = blake3(result).digest()
            draft.add(name, number, shortest(old, new, spec.dtype, whats=self.whats))
            self._measure(name, number, before, after, result)

        pair.each_chunk("comparing", self.specs, edit)

    def products(self, draft: Draft) -> dict[str, dict[str, Any]]:
        """What products take the place of edits, and what the manifest says of each."""
        pair = self.pair
        stored, changed = draft.stored(), draft.changed()
        matrices = {
            name: spec
            for name, spec in self.specs.items()
            if name in changed and name in pair.edited and spec.dtype in FLOATS and len(spec.shape) > 1
        }
        bar = pair.progress.bar("decomposing", sum(s.nbytes for s in matrices.values()), "B")
        found: dict[str, dict[str, Any]] = {}
        for name, spec in matrices.items():
            product = self.way.product(pair, name)
            bar.advance(spec.nbytes)
            if product is None or not self.way.prefers(product, stored[name]):
                continue
            found[name] = draft.add_product(name, product)
            draft.drop(name)
            self._play(name, spec, product)
        return found

    def _play(self, name: str, spec: TensorSpec, product: Product) -> None:
        def play(_: str, number: int) -> None:
            start, stop = chunk_range(spec, number)
            before, after = (cp.read_bytes(name, start, stop) for cp in (self.pair.base, self.pair.tuned))
            result = product.play(before, spec, start)
            self._digests[name, number] = blake3(result).digest()
            self._measure(name, number, before, after, result)

        for_each(lambda number: play(name, number), chunks_of(spec), self.pair.threads)

    def _measure(self, name: str, number: int, before: Any, after: Any, result: Any) -> None:
        dtype = self.specs[name].dtype
        found = sums(before, after, result, dtype)
        self.measured.add(name, number, found)
        if (
            self.way.finite
            and before is not None
            and dtype in FLOATS
            and not np.isfinite([found.norm, found.left]).all()
        ):
            raise PatchError(
                "a value is not finite",
                where=f"{self.pair.tuned.where}: {name}",
                hint="only an exact patch can hold it: --exact",
            )

    def changes(self, draft: Draft, products: Mapping[str, dict[str, Any]]) -> dict[str, Change]:
        """What the manifest says of every tensor that changes, or that changed and is left as it was."""
        changed = draft.changed()
        found = {}
        for name, spec in sorted(self.specs.items()):
            said = {**self.measured.of(name), **products.get(name, {})}
            if name in self.pair.new:
                said["how"] = "new"
            elif name not in products and name not in changed and not said["left"]:
                continue
            found[name] = Change(dtype=spec.dtype, shape=spec.shape, **said)
        return found

    def result_ids(self) -> dict[str, str]:
        """The ids of what the patch gives."""
        ids = self.pair.tuned.tensor_ids(threads=self.pair.threads)
        for name in {name for name, _ in self._digests}:
            spec = self.specs[name]
            ids[name] = tensor_id_of(spec, (self._digest(name, spec, i) for i in chunks_of(spec)))
        return ids

    def _digest(self, name: str, spec: TensorSpec, number: int) -> bytes:
        found = self._digests.get((name, number))
        if found is None:
            found = blake3(self.pair.tuned.read_bytes(name, *chunk_range(spec, number))).digest()
        return found


def _hashed(checkpoint: Checkpoint) -> Hashed:
    return checkpoint if isinstance(checkpoint, Hashed) else Hashed(checkpoint)
