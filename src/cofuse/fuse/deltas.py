"""How far models have gone from their base, and whether in the same direction; from a part of the values, which is said."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..checkpoint import Checkpoint, map_each
from ..checkpoint.dtypes import bits
from ..checkpoint.floats import FLOATS, as_floats

SAMPLE = 32 * 1024  # elements of each block that is looked at


@dataclass(frozen=True, slots=True)
class Deltas:
    """Norms and angles of d_i = t_i - base.

    Attributes:
        base: what the deltas are taken from: the base, or the first model without one.
        models: addresses, in the order of rows and columns.
        relative: |d_i| / |base| over what was looked at.
        cosine: d_i . d_j / (|d_i| |d_j|); 0 where one of them is 0.
        looked: elements looked at, of `elements` in all shared tensors.
        tensors: how many tensors are shared.
        infinite: models with a value that is not finite, and one tensor where it stands.
    """

    base: str
    models: tuple[str, ...]
    relative: tuple[float, ...]
    cosine: tuple[tuple[float, ...], ...]
    looked: int
    elements: int
    tensors: int
    infinite: Mapping[str, str]

    def distance(self, i: int, j: int) -> float:
        """|t_i - t_j| / |base|."""
        a, b = self.relative[i], self.relative[j]
        return float(np.sqrt(max(0.0, a * a + b * b - 2 * a * b * self.cosine[i][j])))


def measure_deltas(
    checkpoints: Mapping[str, Checkpoint],
    base: str | None = None,
    *,
    blocks: int | None = 2,
    threads: int | None = None,
) -> Deltas:
    """Norms and inner products of the models' deltas.

    Args:
        checkpoints: by address, the base among them.
        base: its address; the first model takes its place when None.
        blocks: how many stretches of 32 Ki elements of each tensor are looked at, evenly spread; all of it when None.
            Sums are scaled to the size of the tensor.
        threads: how many; the result does not depend on it.

    >>> import torch
    >>> from cofuse.checkpoint import Memory
    >>> cps = {k: Memory({"x": torch.tensor(v)}) for k, v in (("base", [3.0, 4.0]), ("a", [4.0, 4.0]), ("b", [3.0, 6.0]))}
    >>> found = measure_deltas(cps, "base")
    >>> found.relative, found.cosine[0][1]
    ((0.2, 0.4), 0.0)
    """
    reference = base if base is not None else next(iter(checkpoints))
    first = checkpoints[reference]
    names = tuple(a for a in checkpoints if a != base)
    models = [checkpoints[a] for a in names]
    shared = [
        n
        for n in first.names()
        if first.spec(n).dtype in FLOATS
        and first.spec(n).numel
        and all(n in m and m.spec(n).shape == first.spec(n).shape and m.spec(n).dtype in FLOATS for m in models)
    ]
    found = map_each(lambda name: _look([first, *models], name, blocks), shared, threads or os.cpu_count() or 1)
    gram = np.zeros((len(models), len(models)))
    size = 0.0
    looked = 0
    infinite: dict[str, str] = {}
    for name, (own, square, count, bad) in zip(shared, found, strict=True):
        # Scaled to the whole tensor, so that a large one counts for more than a small one looked at in full.
        share = first.spec(name).numel / count
        looked += count
        for i in bad:
            infinite.setdefault(reference if i == 0 else names[i - 1], name)
        if not bad:
            gram += own * share
            size += square * share
    norms = np.sqrt(np.diag(gram))
    outer = np.outer(norms, norms)
    cosine = np.divide(gram, outer, out=np.zeros_like(gram), where=outer > 0).clip(-1, 1)
    return Deltas(
        reference,
        names,
        tuple((norms / np.sqrt(size) if size else np.where(norms > 0, np.inf, 0.0)).tolist()),
        tuple(map(tuple, cosine.tolist())),
        looked,
        sum(first.spec(n).numel for n in shared),
        len(shared),
        infinite,
    )


def _look(
    checkpoints: Sequence[Checkpoint], name: str, blocks: int | None
) -> tuple[npt.NDArray[np.float64], float, int, tuple[int, ...]]:
    """One tensor's Gram matrix, the base's square, how many elements were looked at, and who is not finite."""
    total = checkpoints[0].spec(name).numel
    count = -(-total // SAMPLE)
    chosen = (
        range(count) if blocks is None or blocks >= count else np.linspace(0, count - 1, blocks).astype(int).tolist()
    )
    gram = np.zeros((len(checkpoints) - 1,) * 2)
    square, looked = 0.0, 0
    bad: set[int] = set()
    for index in chosen:
        start, stop = index * SAMPLE, min((index + 1) * SAMPLE, total)
        values = np.stack([_floats(cp, name, start, stop) for cp in checkpoints])  # [1 + models, elements]
        looked += stop - start
        finite = np.isfinite(values).all(1)
        if not finite.all():
            bad.update(np.flatnonzero(~finite).tolist())
            continue
        deltas = values[1:] - values[0]
        gram += deltas @ deltas.T
        square += float(values[0] @ values[0])
    return gram, square, looked, tuple(sorted(bad))


def _floats(checkpoint: Checkpoint, name: str, start: int, stop: int) -> npt.NDArray[np.float64]:
    code = checkpoint.spec(name).dtype
    raw = np.empty((stop - start) * (bits(code) // 8), np.uint8)
    checkpoint.read_into(name, start * (bits(code) // 8), raw.data)
    return np.asarray(as_floats(raw, code, np.float64), np.float64)
