"""A patch file: read lazily, everything in it checked before it is used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3

from ..checkpoint import CHUNK, SafetensorsFile, TensorSpec, tensor_id
from ..checkpoint.bitcode import width_of
from ..checkpoint.floats import as_floats
from ..errors import CheckpointError, PatchError
from .edits import Coded, Edit, decoded, positions_bytes
from .manifest import MAX_MANIFEST, Change, chunk_range, chunks_of
from .manifest import decoded as read_manifest
from .products import FACTORS, Product

VERSION = "1"
KEY = "cofuse.patch"
# A chunk's row: where, what, two zeros, bytes stored, the first eight of their BLAKE3.
ROW = np.dtype([("where", "u1"), ("what", "u1"), ("zero", "<u2"), ("length", "<u4"), ("digest", "V8")])
MAX_STORED = CHUNK + CHUNK // 2 + 4096


class Patch:
    """A change to a checkpoint, in a file.

    Args:
        path: the file; `Patch.load(path)` is the same.

    Raises:
        PatchError: it is no patch, of another version, or damaged.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self._file = SafetensorsFile(self.path)
        except CheckpointError as error:
            hint = "get the file again" if self.path.exists() else None
            raise PatchError(error.what, where=error.where, got=error.got, expected=error.expected, hint=hint) from None
        version = self._file.metadata.get(KEY)
        if version is None:
            raise PatchError("not a patch", where=path, expected=f"a header that says {KEY}")
        if version != VERSION:
            raise PatchError(
                "the patch is of another version",
                where=path,
                got=ascii(version[:20]),
                expected=VERSION,
                hint="install a newer cofuse, or make the patch again with this one",
            )
        for part in ("manifest", "rows", "chunks"):
            if part not in self._file.names() or self._file.spec(part).dtype != "U8":
                raise PatchError("a part of the patch is missing", where=path, expected=part)
        # Sizes before bytes: a hostile file may be as large as it likes.
        if self._file.spec("manifest").nbytes > MAX_MANIFEST:
            raise self.damaged("the manifest is too large", expected=f"at most {MAX_MANIFEST} bytes")
        stored = bytes(self._file.read_bytes("manifest"))
        self.manifest = read_manifest(stored, path)
        counts = self.manifest.rows()
        if self._file.spec("rows").nbytes != ROW.itemsize * sum(counts.values()):
            raise self.damaged("another number of chunks", got=f"{self._file.spec('rows').nbytes} bytes of rows")
        rows = bytes(self._file.read_bytes("rows"))
        if self._file.metadata != {KEY: VERSION, "check": check_of(stored, rows)}:
            raise self.damaged("another check sum")
        self._place_rows(rows, counts)
        self._check_factors()

    @classmethod
    def load(cls, path: str | Path) -> Patch:
        """Open a patch file."""
        return cls(path)

    def _place_rows(self, raw: bytes, counts: Mapping[str, int]) -> None:
        self.rows = np.frombuffer(raw, ROW)
        lengths = self.rows["length"].astype(np.int64)
        self._starts = np.concatenate([[0], np.cumsum(lengths)])
        if self.rows["zero"].any() or (len(lengths) and int(lengths.max()) > MAX_STORED):
            raise self.damaged("a row that no patch has")
        if self._starts[-1] != self._file.spec("chunks").nbytes:
            raise self.damaged("another number of bytes", got=self._file.spec("chunks").nbytes)
        self._first: dict[str, int] = {}
        at = 0
        for name, count in counts.items():
            self._first[name] = at
            at += count

    def _check_factors(self) -> None:
        wanted = {"manifest", "rows", "chunks"}
        for name, change in self.manifest.tensors.items():
            if change.how != "product":
                continue
            columns = change.spec.numel // max(1, change.shape[0])
            a, b = (change.rank, columns), (change.shape[0], change.rank)
            for key, shape in ((f"a:{name}", a), (f"b:{name}", b)):
                wanted.add(key)
                spec = self._file.spec(key) if key in self._file else None
                if spec is None or spec.shape != shape or spec.dtype not in FACTORS:
                    raise self.damaged("a factor is missing or of another shape", name, got=spec, expected=list(shape))
        if wanted != set(self._file.names()):
            raise self.damaged("a part that belongs to nothing", got=min(set(self._file.names()) - wanted))

    # What is in it

    @property
    def exact(self) -> bool:
        """Whether it gives what it was made from, bit for bit."""
        return self.manifest.exact

    @property
    def base(self) -> str:
        """The content id of the checkpoint that it belongs to."""
        return self.manifest.base

    @property
    def result(self) -> str:
        """The content id of the checkpoint that it gives."""
        return self.manifest.result

    @property
    def nbytes(self) -> int:
        """Size of the file."""
        return self._file.header.data_start + self._file.header.data_bytes

    def change(self, name: str) -> Change | None:
        """What becomes of a tensor; None where nothing does."""
        return self.manifest.tensors.get(name)

    def coded(self, name: str, number: int) -> Coded:
        """A chunk's edit as it is stored; `name` is a tensor's, or a file's after a `/`.

        Raises:
            PatchError: its bytes are damaged.
        """
        row = self._first[name] + number
        kept = self.rows[row]
        start, stop = int(self._starts[row]), int(self._starts[row + 1])
        data = bytes(self._file.read_bytes("chunks", start, stop))
        if blake3(data).digest(length=8) != bytes(kept["digest"]):
            raise self.damaged("another check sum", name)
        return Coded(int(kept["where"]), int(kept["what"]), data)

    def edit(self, name: str, number: int) -> Edit | None:
        """What becomes of a chunk; None where nothing does.

        Raises:
            PatchError: its bytes are damaged, or not an edit.
        """
        made = self.coded(name, number)
        if not made.data:
            return None
        spec = self.spec_of(name)
        start, stop = chunk_range(spec, number)
        width = width_of(spec.dtype)
        try:
            return decoded(made, (stop - start) // width, width)
        except ValueError as error:
            raise self.damaged(str(error), name) from None

    def whats(self, name: str) -> set[int]:
        """The kinds of edits of a tensor's chunks."""
        first = self._first.get(name, 0)
        rows = self.rows[first : first + len(chunks_of(self.spec_of(name)))] if name in self._first else self.rows[:0]
        return {int(what) for what in np.unique(rows["what"][rows["length"] > 0])}

    def spec_of(self, name: str) -> TensorSpec:
        """Dtype and shape of a changed tensor, or of a file's bytes."""
        if name.startswith("/"):
            return TensorSpec("U8", (self.manifest.files[name[1:]],))
        return self.manifest.tensors[name].spec

    def product(self, name: str) -> Product:
        """A tensor's factors.

        Raises:
            PatchError: they are damaged.
        """
        change = self.manifest.tensors[name]
        found = []
        for key, identity in ((f"a:{name}", change.a), (f"b:{name}", change.b)):
            spec = self._file.spec(key)
            if tensor_id(self._file, key) != identity:
                raise self.damaged("a factor has another id", name)
            raw = np.frombuffer(self._file.read_bytes(key), np.uint8)
            values: Any = as_floats(raw, spec.dtype, np.float32).reshape(spec.shape)
            if not np.isfinite(values).all():
                raise self.damaged("a factor is not finite", name)
            found.append(values)
        return Product(found[0], found[1], change.scale, self._file.spec(f"a:{name}").dtype)

    def file(self, name: str) -> bytes:
        """A small file that the patch brings."""
        out = bytearray()
        for number in chunks_of(self.spec_of(f"/{name}")):
            edit = self.edit(f"/{name}", number)
            if edit is None or edit.positions is not None or edit.what != 0:
                raise self.damaged("a file is not whole", name)
            out += edit.values.tobytes()
        return bytes(out)

    def sizes(self) -> Iterator[tuple[str, int, int, int]]:
        """Of each tensor that is edited or new: its name, values stored, bytes of positions, bytes of values."""
        for name, change in self.manifest.tensors.items():
            if change.how == "product":
                continue
            values = where = stored = 0
            for number in chunks_of(change.spec):
                made = self.coded(name, number)
                start, stop = chunk_range(change.spec, number)
                try:
                    count, positions = positions_bytes(made, (stop - start) // width_of(change.dtype))
                except ValueError as error:
                    raise self.damaged(str(error), name) from None
                values, where, stored = values + count, where + positions, stored + len(made.data)
            yield name, values, where, stored - where

    def factor_bytes(self, name: str) -> int:
        """Bytes of a product's factors."""
        return sum(self._file.spec(f"{part}:{name}").nbytes for part in "ab")

    def errors(self) -> Mapping[str, tuple[float, float | None]]:
        """Of each tensor that is not exact: what is left out, and the norm of the whole change (None: not known)."""
        return {n: (c.left, c.norm) for n, c in self.manifest.tensors.items() if c.left}

    def damaged(self, what: str, name: str = "", *, got: object = None, expected: object = None) -> PatchError:
        """The error for bytes that cannot be what was written."""
        where = f"{self.path}: {name.lstrip('/')}" if name else self.path
        return PatchError(
            f"the patch is damaged: {what}", where=where, got=got, expected=expected, hint="get the file again"
        )


def check_of(manifest: bytes, rows: bytes) -> str:
    """The check sum of what describes the rest."""
    return blake3(manifest + rows).hexdigest()
