"""How the changes of several models lie to one another, seen from their base."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ....checkpoint import Checkpoint, map_each
from ....checkpoint.bitcode import width_of
from ....checkpoint.floats import FLOATS, as_floats
from ....errors import CheckpointError, FuseError
from ....progress import SILENT, Progress
from ...statistics.record import open_statistics

BLOCK = 128 * 1024  # elements of each model that a thread holds

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Geometry:
    """Inner products of d_i = model_i - base, under a metric.

    Attributes:
        models: what the rows are.
        gram: <d_i, d_j> = sum_k F_k d_ik d_jk; F = 1 without a Fisher.
        signs: [i, j] = sum_k F_k |d_ik| over the entries where d_i and d_j have the same sign.
        sizes: sum_k F_k |d_ik| over all.
    """

    models: tuple[str, ...]
    gram: Array
    signs: Array
    sizes: Array

    @property
    def norms(self) -> Array:
        """|d_i|."""
        return np.sqrt(np.diag(self.gram))

    def cosine(self, i: int, j: int) -> float:
        """Of the angle between two changes; 0 where one of them is none."""
        return _share(self.gram[i, j], self.norms[i] * self.norms[j])

    def together(self, i: int, among: Sequence[int] | None = None) -> float:
        """Of the angle between a change and the sum of the others', of some of them where `among` says which."""
        others = self._others(i, among)
        square = float(self.gram[np.ix_(others, others)].sum())
        return _share(float(self.gram[i, others].sum()), self.norms[i] * np.sqrt(max(0.0, square)))

    def agreement(self, i: int, among: Sequence[int] | None = None) -> float:
        """The share of a change, by size, that has another one's sign: the mean over the others; 1 without any."""
        others = self._others(i, among)
        return _share(float(self.signs[i, others].mean()), self.sizes[i]) if others else 1.0

    def _others(self, i: int, among: Sequence[int] | None) -> list[int]:
        return [j for j in (range(len(self.models)) if among is None else among) if j != i]


def _share(above: float, below: float) -> float:
    return float(above / below) if below > 0 else 0.0


def geometry(
    base: Checkpoint,
    models: Mapping[str, Checkpoint],
    fisher: Checkpoint | None = None,
    *,
    threads: int | None = None,
    progress: Progress = SILENT,
) -> Geometry:
    """Measure the changes of some models, in one pass over all of their values.

    Args:
        base: what they were tuned from.
        models: by address.
        fisher: the diagonal of the base's Fisher: inner products are then those of what the changes do to the output,
            <d_i, d_i> / 2 being the predicted KL in nats; tensors without statistics are left out.
        threads: how many; the result does not depend on it.
        progress: told of every value.

    Raises:
        TaskError: the Fisher is of another model.
        FuseError: the models share no tensor with the base.
        CheckpointError: a value is not finite.

    Memory: a block of 128 Ki elements of each model, for each thread.

    >>> import torch
    >>> from cofuse.checkpoint import Memory
    >>> base = Memory({"x": torch.zeros(2)})
    >>> found = geometry(base, {"a": Memory({"x": torch.tensor([3.0, 4.0])}), "b": Memory({"x": torch.tensor([3.0, 0.0])})})
    >>> found.norms.tolist(), round(found.cosine(0, 1), 6), found.agreement(1)
    ([5.0, 3.0], 0.6, 1.0)
    """
    if fisher is not None:
        open_statistics(fisher, "fisher", model=base)
    several = list(models.values())
    names = [n for n in base.names() if _shared(n, base, several) and (fisher is None or n in fisher)]
    if not names:
        raise FuseError("the models share no tensor with the base", where=base.where)
    jobs = [(n, start) for n in names for start in range(0, base.spec(n).numel, BLOCK)]
    bar = progress.bar("comparing changes", len(jobs))

    def look(job: tuple[str, int]) -> tuple[Array, Array, Array]:
        name, start = job
        stop = min(start + BLOCK, base.spec(name).numel)
        from_base = _floats(base, name, start, stop)
        changes = np.stack([_floats(m, name, start, stop) - from_base for m in several])  # [models, elements]
        metric = np.ones(stop - start) if fisher is None else _floats(fisher, name, start, stop)
        if not (np.isfinite(changes).all() and np.isfinite(metric).all()):
            raise CheckpointError("a value is not finite", where=name)
        sizes, signs = np.abs(changes) * metric, np.sign(changes)
        agreed = np.stack([(own * (signs == sign)).sum(1) for own, sign in zip(sizes, signs, strict=True)])
        bar.advance(1)
        # einsum, whose sums do not depend on a BLAS's threads.
        return np.einsum("ik,jk,k->ij", changes, changes, metric, optimize=False), agreed, sizes.sum(1)

    found = map_each(look, jobs, threads or os.cpu_count() or 1)
    gram, signs, sizes = (np.sum([parts[k] for parts in found], axis=0) for k in range(3))
    return Geometry(tuple(models), gram, signs, sizes)


def _shared(name: str, base: Checkpoint, models: Sequence[Checkpoint]) -> bool:
    spec = base.spec(name)
    return (
        spec.dtype in FLOATS
        and spec.numel > 0
        and all(name in m and m.spec(name).shape == spec.shape and m.spec(name).dtype in FLOATS for m in models)
    )


def _floats(checkpoint: Checkpoint, name: str, start: int, stop: int) -> Array:
    dtype = checkpoint.spec(name).dtype
    width = width_of(dtype)
    data = checkpoint.read_bytes(name, start * width, stop * width)
    return np.asarray(as_floats(np.frombuffer(data, np.uint8), dtype, np.float64), np.float64)
