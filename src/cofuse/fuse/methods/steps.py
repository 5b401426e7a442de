"""The steps that sparsifying methods share, written out plainly; `fuse.kernels.steps` has the same ones compiled.

Blocks are numpy's or torch's, flat unless it says otherwise. Steps that change values do so in place.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from functools import cache
from typing import Any, Protocol, cast

import array_api_compat
import numpy as np
import numpy.typing as npt

from .method import Array
from .random import RANGE, draws, limit


class Steps(Protocol):
    """The steps, plain or compiled."""

    def tally(self, values: Array, prefix: int | None, shift: int, counts: npt.NDArray[np.int64]) -> None:
        """Count the 16 bits of the magnitudes above `shift` into `counts`, of those alone whose bits above are `prefix`."""

    def gather(self, values: Array, prefix: int) -> npt.NDArray[np.uint16]:
        """The last 16 bits of those magnitudes whose other bits are `prefix`, in their order."""

    def count_equal(self, values: Array, value: float) -> int:
        """How many have this magnitude."""

    def position(self, values: Array, value: float, count: int) -> int:
        """Where the entry of this magnitude stands that `count` others like it come before; the size if none does."""

    def magnitude(self, values: Array) -> float:
        """The sum of the magnitudes, in float64."""

    def squares(self, values: Array) -> float:
        """The sum of the squares, in float64."""

    def trim(self, values: Array, outer: tuple[float, int], inner: tuple[float, int], factor: float) -> None:
        """Keep what comes before the outer cut and not before the inner one, times `factor`; 0 elsewhere.

        A cut is a magnitude, and before which entry those of just this magnitude come before it.
        """

    def drop(self, values: Array, key: int, start: int, density: float, factor: float) -> None:
        """Keep each entry with the probability `density`, times `factor`; 0 elsewhere.

        What is drawn comes from the stream `key`, for the tensor's entries from `start` on, the block's first.
        """

    def drop_by_rank(
        self, values: Array, key: int, start: int, density: float, epsilon: float, factor: float, inverse: bool
    ) -> None:
        """Keep each entry by a probability that grows with its rank in its row, times `factor`; 0 elsewhere.

            p = density - epsilon + 2 epsilon r / (n - 1)

        for the entry of the r-th smallest magnitude of n (r from 0, equal ones in their order); `density` in a row of one.
        `values` are [rows, n]; `key` and `start` as in `drop`; `inverse` divides what is kept by its probability too.
        """

    def elect(
        self,
        deltas: Array,
        base: Array,
        factor: Sequence[float],
        weight: Sequence[float],
        *,
        scale: float,
        normalize: bool,
        count: bool,
        least: float,
    ) -> Array:
        """Elect a sign for each entry, and add to the base the deltas that agree with it.

        The sign is that of the sum of the deltas (`count`: of the sum of their signs), + for 0.

            out = base + scale sum_agree f_i d_i / sum_agree w_i          (not divided where not normalised)

        for `deltas` d_i, [models, entries], and `base`, [entries], which is overwritten with the result. `least` is the least
        that the sum of weights counts as; when it is 0, a sum of 0 counts as 1.
        """

    def variance(self, deltas: Array) -> Array:
        """The variance over the models of deltas [models, entries], in float64, then rounded; 0 where all are equal."""


def tally(values: Array, prefix: int | None, shift: int, counts: npt.NDArray[np.int64]) -> None:
    """See `Steps`."""
    xp: Any = array_api_compat.array_namespace(values)
    bits = _bits(values)
    if prefix is not None:
        bits = bits[(bits >> (shift + 16)) == prefix]
    found = xp.bincount((bits >> shift) & 0xFFFF, minlength=len(counts))
    counts += np.asarray(array_api_compat.to_device(found, "cpu"))


def gather(values: Array, prefix: int) -> npt.NDArray[np.uint16]:
    """See `Steps`."""
    bits = _bits(values)
    found = bits[(bits >> 16) == prefix] & 0xFFFF
    return np.asarray(array_api_compat.to_device(found, "cpu")).astype(np.uint16)


def count_equal(values: Array, value: float) -> int:
    """See `Steps`."""
    return int((abs(values) == value).sum())


def position(values: Array, value: float, count: int) -> int:
    """See `Steps`."""
    (found,) = array_api_compat.array_namespace(values).nonzero(abs(values) == value)
    return int(found[count]) if count < len(found) else len(values)


def magnitude(values: Array) -> float:
    """See `Steps`."""
    xp = array_api_compat.array_namespace(values)
    return float(xp.sum(abs(values), dtype=xp.float64))


def squares(values: Array) -> float:
    """See `Steps`."""
    xp = array_api_compat.array_namespace(values)
    return float((xp.astype(values, xp.float64) ** 2).sum())


def trim(values: Array, outer: tuple[float, int], inner: tuple[float, int], factor: float) -> None:
    """See `Steps`."""
    _keep(values, _before(values, *outer) & ~_before(values, *inner), factor)


def drop(values: Array, key: int, start: int, density: float, factor: float) -> None:
    """See `Steps`."""
    _keep(values, draws(key, start, values) < limit(density), factor)


def drop_by_rank(
    values: Array, key: int, start: int, density: float, epsilon: float, factor: float, inverse: bool
) -> None:
    """See `Steps`."""
    xp = array_api_compat.array_namespace(values)
    order = xp.argsort(abs(values), axis=-1, stable=True)
    rank = xp.astype(xp.argsort(order, axis=-1), xp.float64)
    probability = (density - epsilon) + 2 * epsilon * (rank / (values.shape[-1] - 1 or 1))
    if values.shape[-1] == 1:
        probability = xp.full_like(probability, density)
    kept = draws(key, start, values) < probability * RANGE
    _keep(values, kept, xp.astype(factor / probability, values.dtype) if inverse else factor)


def elect(
    deltas: Array,
    base: Array,
    factor: Sequence[float],
    weight: Sequence[float],
    *,
    scale: float,
    normalize: bool,
    count: bool,
    least: float,
) -> Array:
    """See `Steps`."""
    xp = array_api_compat.array_namespace(deltas)
    votes = xp.zeros_like(base)
    for delta in deltas:
        votes += xp.sign(delta) if count else delta
    total, agreed = xp.zeros_like(base), xp.zeros_like(base)
    for delta, f, w in zip(deltas, factor, weight, strict=True):
        agrees = ((delta > 0) & (votes >= 0)) | ((delta < 0) & (votes < 0))
        total += agrees * (delta * f)
        agreed += agrees * xp.full_like(delta, w)
    if normalize:
        if least:
            agreed = xp.clip(agreed, min=least)
        else:
            agreed[agreed == 0] = 1
        total /= agreed
    total *= scale
    base += total
    return base


def variance(deltas: Array) -> Array:
    """See `Steps`."""
    xp = array_api_compat.array_namespace(deltas)
    wide = xp.astype(deltas, xp.float64)
    # One after the other: the sum of equal floats is exact in float64 for any number of models that fits a machine.
    mean = sum(wide[1:], wide[0]) / len(deltas)
    squared = [(row - mean) ** 2 for row in wide]
    return cast("Array", xp.astype(sum(squared[1:], squared[0]) / len(deltas), deltas.dtype))


def _bits(values: Any) -> Any:
    """The magnitudes' bits as whole numbers: floats without a sign are ordered as these are."""
    xp: Any = array_api_compat.array_namespace(values)
    return abs(values).view(xp.int32 if values.dtype.itemsize == 4 else xp.int64)


def _before(values: Array, value: float, until: int) -> Any:
    xp = array_api_compat.array_namespace(values)
    index = xp.arange(len(values), device=array_api_compat.device(values))
    return (abs(values) > value) | ((abs(values) == value) & (index < until))


def _keep(values: Array, kept: Any, factor: Any) -> None:
    values *= factor
    values[~kept] = 0


@cache
def _compiled() -> Steps:
    return cast("Steps", importlib.import_module("...kernels.steps", __name__))


def steps_for(block: Array) -> Steps:
    """The compiled steps for float32 arrays of numpy's; the plain ones for all else."""
    if isinstance(block, np.ndarray) and block.dtype == np.float32:
        return _compiled()
    return cast("Steps", sys.modules[__name__])
