"""Tensors whose rows are gathered from others': a vocabulary in another order, with rows that a model lacks."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import CheckpointError
from .checkpoint import BLOCK_BYTES, Checkpoint, TensorSpec
from .floats import STORED, Array, as_floats, as_stored
from .views import Source, View

# What stands in `Rows.which` for a row that is no copy.
ZERO, MEAN, FILL = -1, -2, -3


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Where each row of a gathered tensor comes from.

    Attributes:
        sources: tensors that rows are taken from; the first gives dtype and the size of a row.
        which: int32 [rows]: which source; ZERO, MEAN (of `means[row]`) or FILL (the mean of the rows before `filled`).
        row: int64 [rows]: which of the source's rows.
        means: pairs (source, row) that one row is the mean of.
        filled: how many rows FILL is the mean of.
        axis: where in the shape the rows are counted; all before it are 1.
    """

    sources: tuple[Source, ...]
    which: npt.NDArray[np.int32]
    row: npt.NDArray[np.int64]
    means: tuple[tuple[tuple[int, int], ...], ...] = ()
    filled: int = 0
    axis: int = 0


class Gathered(View):
    """A checkpoint some of whose tensors are gathered row by row.

    Rows of another dtype are rounded to the tensor's own; a mean is taken in float64 and rounded once.

    >>> import torch
    >>> from cofuse.checkpoint import Memory
    >>> own = Memory({"e": torch.tensor([[1.0, 1.0], [3.0, 3.0]])})
    >>> e = Source(own, "e")
    >>> rows = Rows((e,), np.array([0, ZERO, MEAN], np.int32), np.array([1, 0, 0]), means=(((0, 0), (0, 1)),))
    >>> Gathered(own, {"e": rows}).read("e")[:, 0]
    tensor([3., 0., 2.])
    """

    def __init__(
        self, checkpoint: Checkpoint, rows: Mapping[str, Rows], *, files: Mapping[str, bytes] | None = None
    ) -> None:
        super().__init__(
            {name: Source(checkpoint, name) for name in checkpoint.names()},
            files=checkpoint.files if files is None else files,
            metadata=checkpoint.metadata,
            aliases=checkpoint.aliases,
            where=checkpoint.where,
        )
        self._rows = dict(rows)
        self._fills: dict[str, bytes] = {}
        self._lock = threading.Lock()
        for name, gathered in self._rows.items():
            self._check(name, gathered)

    def _check(self, name: str, rows: Rows) -> None:
        own = rows.sources[0].checkpoint.spec(rows.sources[0].name)
        for source in rows.sources:
            spec = source.checkpoint.spec(source.name)
            if _around(spec.shape, rows.axis) != _around(own.shape, rows.axis):
                raise CheckpointError(
                    "rows have another size",
                    where=f"{source.checkpoint.where}: {source.name}",
                    got=list(spec.shape),
                    expected=list(own.shape),
                )
            if spec.dtype != own.dtype and not {spec.dtype, own.dtype} <= STORED.keys():
                raise CheckpointError(
                    "rows of these dtypes cannot be mixed",
                    where=f"{source.checkpoint.where}: {source.name}",
                    got=spec.dtype,
                    expected=own.dtype,
                )

    def spec(self, name: str) -> TensorSpec:
        rows = self._rows.get(self.resolve(name))
        if rows is None:
            return super().spec(name)
        own = rows.sources[0].checkpoint.spec(rows.sources[0].name)
        shape = (*own.shape[: rows.axis], len(rows.which), *own.shape[rows.axis + 1 :])
        return TensorSpec(own.dtype, shape)

    def blocks(self, name: str, size: int = BLOCK_BYTES) -> Iterator[tuple[int, int]]:
        if self.resolve(name) in self._rows:
            return Checkpoint.blocks(self, name, size)
        return super().blocks(name, size)

    def read_bytes(self, name: str, start: int = 0, stop: int | None = None) -> bytes | bytearray | memoryview:
        if self.resolve(name) not in self._rows:
            return super().read_bytes(name, start, stop)
        start, stop = self.check_range(name, start, stop)
        data = bytearray(stop - start)
        self.read_into(name, start, memoryview(data))
        return data

    def read_into(self, name: str, start: int, out: memoryview) -> None:
        name = self.resolve(name)
        rows = self._rows.get(name)
        if rows is None:
            super().read_into(name, start, out)
            return
        self.check_range(name, start, start + len(out))
        width, stop = self._width(name), start + len(out)
        if not len(out):
            return
        for first, last in _runs(rows, start // width, -(-stop // width)):
            low, high = max(start, first * width), min(stop, last * width)
            piece, skip = out[low - start : high - start], low - first * width
            kind, source = int(rows.which[first]), rows.sources[max(0, int(rows.which[first]))]
            if kind == ZERO:
                piece[:] = bytes(len(piece))
            elif kind >= 0 and source.checkpoint.spec(source.name).dtype == self.spec(name).dtype:
                source.checkpoint.read_into(source.name, int(rows.row[first]) * width + skip, piece)
            else:
                piece[:] = self._computed(name, rows, first, last)[skip : skip + len(piece)]

    def _width(self, name: str) -> int:
        """Bytes of a row."""
        rows, spec = self._rows[name], self.spec(name)
        return TensorSpec(spec.dtype, spec.shape[rows.axis + 1 :]).nbytes

    def _computed(self, name: str, rows: Rows, first: int, last: int) -> memoryview:
        """The bytes of rows that are no plain copy."""
        kind, dtype = int(rows.which[first]), self.spec(name).dtype
        if kind == FILL:
            return memoryview(self._fill(name) * (last - first))
        if kind == MEAN:
            pairs = rows.means[int(rows.row[first])]
            total = sum(_floats(rows.sources[s], r, r + 1, rows.axis) for s, r in pairs)
            return memoryview(as_stored(np.asarray(total) / len(pairs), dtype).tobytes())
        start = int(rows.row[first])
        values = _floats(rows.sources[kind], start, start + last - first, rows.axis)
        return memoryview(as_stored(values, dtype).tobytes())

    def _fill(self, name: str) -> bytes:
        with self._lock:
            if name not in self._fills:
                rows, dtype, width = self._rows[name], self.spec(name).dtype, self._width(name)
                step = max(1, BLOCK_BYTES // max(1, width))
                total = np.zeros(width // np.dtype(STORED[dtype]).itemsize)
                for start in range(0, rows.filled, step):
                    stop = min(start + step, rows.filled)
                    raw = np.frombuffer(self.read_bytes(name, start * width, stop * width), np.uint8)
                    total += as_floats(raw, dtype, np.float64).reshape(stop - start, -1).sum(0)
                self._fills[name] = as_stored(total / max(1, rows.filled), dtype).tobytes()
            return self._fills[name]


def _around(shape: tuple[int, ...], axis: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return shape[:axis], shape[axis + 1 :]


def _runs(rows: Rows, first: int, last: int) -> Iterator[tuple[int, int]]:
    """Stretches of rows that follow each other in one source, or are of one kind; means one by one."""
    which, row = rows.which[first:last], rows.row[first:last]
    follows = (which[1:] == which[:-1]) & (
        ((which[1:] >= 0) & (row[1:] == row[:-1] + 1)) | (which[1:] == ZERO) | (which[1:] == FILL)
    )
    ends = (np.flatnonzero(~follows) + 1).tolist()
    for a, b in zip([0, *ends], [*ends, last - first], strict=True):
        yield first + a, first + b


def _floats(source: Source, first: int, last: int, axis: int) -> Array:
    spec = source.checkpoint.spec(source.name)
    width = TensorSpec(spec.dtype, spec.shape[axis + 1 :]).nbytes
    raw = np.empty((last - first) * width, np.uint8)
    source.checkpoint.read_into(source.name, first * width, raw.data)
    return as_floats(raw, spec.dtype, np.float64)
