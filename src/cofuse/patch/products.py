"""Changes of low rank: W + scale B A, summed in one order, so that the bits depend on nothing but the factors.

A matrix product of a BLAS depends on its version, the processor and the shape of the block. Here rank after rank is
added in float32, elementwise, so that a patch's result has one content id everywhere, and any range of a tensor can be
had by itself; at rank 16 that takes 5 ns an element.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..checkpoint import TensorSpec
from ..checkpoint.bitcode import width_of
from ..checkpoint.floats import FLOATS, as_floats, as_stored

FACTORS = ("F32", "F16", "BF16")  # what factors are stored in
_AT_ONCE = 65_536  # elements: what stays in a core's cache


@dataclass(frozen=True, slots=True, eq=False)
class Product:
    """A matrix of low rank: scale B A.

    Attributes:
        a: float32 [rank, columns].
        b: float32 [rows, rank].
        scale: LoRA's s.
        dtype: that the factors are stored in.
    """

    a: npt.NDArray[np.float32]
    b: npt.NDArray[np.float32]
    scale: float = 1.0
    dtype: str = "F32"

    @property
    def rank(self) -> int:
        """Number of A's rows."""
        return len(self.a)

    def play(self, old: bytes | bytearray | memoryview, spec: TensorSpec, start: int) -> bytearray:
        """The new bytes of a stretch of a tensor.

        Args:
            old: the base's, whole elements.
            spec: of the tensor; its first dimension are the rows.
            start: the stretch's first byte in the tensor.
        """
        columns = self.a.shape[1]
        first = start // width_of(spec.dtype)
        raw = np.frombuffer(old, np.uint8)
        working: Any = np.float64 if spec.dtype == "F64" else np.float32
        new = np.array(as_floats(raw, spec.dtype, working), copy=True)
        done = 0
        while done < len(new):
            # The rest of a row, or as many whole rows as fit.
            row, column = divmod(first + done, columns)
            width = min(columns - column, len(new) - done, _AT_ONCE)
            rows = max(1, min(_AT_ONCE, len(new) - done) // columns) if column == 0 and width == columns else 1
            part = new[done : done + rows * width].reshape(rows, width)
            part += self._block(slice(row, row + rows), slice(column, column + width))
            done += rows * width
        with np.errstate(invalid="ignore"):
            return bytearray(as_stored(new, spec.dtype).data)

    def _block(self, rows: slice, columns: slice) -> npt.NDArray[np.float32]:
        total = np.zeros((rows.stop - rows.start, columns.stop - columns.start), np.float32)
        term = np.empty_like(total)
        b = self.b[rows]
        for k in range(self.rank):
            np.multiply(b[:, k : k + 1], self.a[k, columns], out=term)
            total += term
        total *= np.float32(self.scale)
        return total


def holds(spec: TensorSpec) -> bool:
    """Whether a tensor's change can be a product at all.

    >>> holds(TensorSpec("BF16", (4, 4))), holds(TensorSpec("BF16", (4,)))
    (True, False)
    """
    return spec.dtype in FLOATS and len(spec.shape) > 1 and spec.numel > 0
