"""How long changes are, tensor by tensor, and how they lie to one another; one pass, block by block."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...checkpoint import CHUNK, Checkpoint
from ...checkpoint.bitcode import width_of
from ...checkpoint.floats import FLOATS, as_floats
from ...progress import SILENT, Progress

_BLOCK = 1 << 16  # elements of each change at a time: as many as fit a processor's cache


@dataclass(frozen=True, slots=True)
class Geometry:
    """What is known of several changes.

    Attributes:
        names: of the floating-point tensors that all have.
        moved: norms of the changes, [change, tensor].
        before: norms of what was changed, [change, tensor].
        gram: inner products of the changes, [change, change].
    """

    names: tuple[str, ...]
    moved: npt.NDArray[np.float64]
    before: npt.NDArray[np.float64]
    gram: npt.NDArray[np.float64]

    @property
    def relative(self) -> npt.NDArray[np.float64]:
        """Of each change, its norm over that of its base."""
        return _over(np.sqrt(self.gram.diagonal().clip(0)), np.sqrt((self.before**2).sum(1)))

    @property
    def by_tensor(self) -> npt.NDArray[np.float64]:
        """The same for each tensor, [change, tensor]."""
        return _over(self.moved, self.before)

    def cosine(self, one: int, others: Mapping[int, float]) -> float:
        """The cosine of a change with the mean of others, each taken for its direction alone and weighed.

            c_ij = g_ij / sqrt(g_ii g_jj)        cos = c_i w / sqrt(w' c w)

        Lengths do not count, so that nobody owns the mean by being long.
        """
        sizes = np.sqrt(self.gram.diagonal().clip(0))
        towards = [j for j in others if sizes[j] > 0]
        if not towards or not sizes[one]:
            return 0.0
        weights = np.array([others[j] for j in towards])
        unit = self.gram / np.where(sizes > 0, sizes, 1)[:, None] / np.where(sizes > 0, sizes, 1)[None, :]
        length = float(weights @ unit[np.ix_(towards, towards)] @ weights)
        return float(unit[one, towards] @ weights) / math.sqrt(length) if length > 1e-12 else 0.0


def measure(changes: Sequence[tuple[Checkpoint, Checkpoint]], progress: Progress = SILENT) -> Geometry:
    """Measure changes, each given as what it led to and what it started from.

    Memory: a chunk of 4 MiB, and a block of half a MiB, for each change and each base.
    """
    names = [n for n in changes[0][1].names() if changes[0][1].spec(n).dtype in FLOATS]
    names = [n for n in names if all(_alike(after, before, n, changes[0][1]) for after, before in changes)]
    count = len(changes)
    moved, before = np.zeros((count, len(names))), np.zeros((count, len(names)))
    gram = np.zeros((count, count))
    ids = [(_ids(after), _ids(base)) for after, base in changes]
    bar = progress.bar("measuring", sum(changes[0][1].spec(name).numel for name in names))
    for column, name in enumerate(names):
        # A frozen tensor of a store is known by its id, and counts as base alone.
        still = [a.get(name) is not None and a.get(name) == b.get(name) for a, b in ids]
        length = changes[0][1].spec(name).numel
        step = CHUNK // 4
        for start in range(0, length, step):
            stop = min(start + step, length)
            bases: dict[int, Any] = {}
            for _, base in changes:
                if id(base) not in bases:
                    bases[id(base)] = floats(base, name, start, stop)
            squares = {key: float(np.square(values, dtype=np.float64).sum()) for key, values in bases.items()}
            before[:, column] += [squares[id(base)] for _, base in changes]
            rows = [i for i in range(count) if not still[i]]
            if not rows:
                continue
            afters = [floats(changes[i][0], name, start, stop) for i in rows]
            for at in range(0, stop - start, _BLOCK):
                # In float64: the square of a large float32 that is finite would not be.
                part = np.stack(
                    [
                        np.subtract(
                            after[at : at + _BLOCK], bases[id(changes[i][1])][at : at + _BLOCK], dtype=np.float64
                        )
                        for i, after in zip(rows, afters, strict=True)
                    ]
                )  # [change, element]
                found = part @ part.T
                gram[np.ix_(rows, rows)] += found
                moved[rows, column] += found.diagonal()
        bar.advance(length)
    return Geometry(tuple(names), np.sqrt(moved.clip(0)), np.sqrt(before), gram)


def _alike(after: Checkpoint, before: Checkpoint, name: str, first: Checkpoint) -> bool:
    return all(
        name in cp and cp.spec(name).dtype in FLOATS and cp.spec(name).shape == first.spec(name).shape
        for cp in (after, before)
    )


def _ids(checkpoint: Checkpoint) -> Mapping[str, str]:
    known: Mapping[str, str] = getattr(checkpoint, "tensor_ids", dict)()
    return known


def floats(checkpoint: Checkpoint, name: str, start: int, stop: int) -> Any:
    """Elements of a tensor as float32, or as float64 where it has them."""
    dtype = checkpoint.spec(name).dtype
    width = width_of(dtype)
    raw = np.frombuffer(checkpoint.read_bytes(name, start * width, stop * width), np.uint8)
    return as_floats(raw, dtype, np.float64 if dtype == "F64" else np.float32)


def _over(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    found: npt.NDArray[np.float64] = np.divide(a, b, out=np.zeros_like(a), where=b > 0)
    return found
