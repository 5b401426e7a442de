"""Means of models in which every entry is weighed by how much the model's output depends on it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import array_api_compat
import numpy as np

from ...errors import FuseError
from .method import Array, Place, StatisticsScan

# Entries on which no model's output depends at all weigh this: less than any other, and the models' plain mean is taken.
NOTHING = 1e-200

Norm = Literal["mean", "rms", "none"]
Floored = Literal["all", "target"]


def fisher(
    models: Iterable[Array],
    base: Array | None,
    *,
    fisher: Iterable[Array],
    known: Sequence[float],
    weight: Sequence[float],
    normalize_by: Norm = "mean",
    floor: float = 1e-6,
    floor_on: Floored = "all",
) -> Array:
    """The mean of the models, each entry weighed by its Fisher information in each of them.

        out_j = sum_i w_i F_ij t_ij / sum_i w_i F_ij,   F_ij <- max(F_ij / s_i, floor)

    the mode of the product of the models' posteriors, N(t_i, 1/F_i) each. s_i is the Fisher's size over the whole model,
    so that one that is a billion times larger (another loss, another number of examples, a contributor who wants to own
    the fuse) counts as much as the others.

    Args:
        models: one block of each model, all of one shape and floating dtype; taken one at a time.
        base: not used.
        fisher: the same block of each model's diagonal of the Fisher information, not negative.
        known: s_i, one for each model.
        weight: w_i, one for each model (lambda in the paper); no unit.
        normalize_by: what s_i is, over all entries that are fused so: `mean`, of F (equal mass), `rms`, the root of the
            mean of F^2 (the paper's norm, up to a factor that all share), or `none`, 1.
        floor: the least F; no unit but with `normalize_by: none`. Where all models are at it, their mean is taken.
        floor_on: `all`, every F after it is divided; `target`, F of the first model alone, before it is divided.

    Returns:
        An array of that shape and dtype, summed in float64 as differences: models that agree give what they agree on, and
        one weight that is not zero gives that model. With `normalize_by: rms, floor_on: target, floor: 1e-6` it computes
        what the authors' code does, in which the floor keeps the target's entries that it does not know about (with
        Fishers as small as those of large models, most of them).

    Source: Merging models with Fisher-weighted averaging, arXiv 2111.09832, eq. 4 and sec. 4 (normalisation).

    >>> import numpy as np
    >>> t, f = [np.array([0.0, 0.0]), np.array([1.0, 1.0])], [np.array([3.0, 1.0]), np.array([1.0, 3.0])]
    >>> fisher(t, None, fisher=f, known=[1.0, 1.0], weight=[1, 1])
    array([0.25, 0.75])
    """
    mean: Any = None
    total: Any = None
    limits = floors(floor, floor_on, len(weight))
    for block, own, w, size, (first, least) in zip(models, fisher, weight, known, limits, strict=True):
        if w:
            xp = array_api_compat.array_namespace(block)
            share = w * xp.clip(xp.clip(xp.astype(own, xp.float64), first, None) / size, least, None)
            if mean is None:
                mean, total, dtype = xp.astype(block, xp.float64), share, block.dtype
            else:
                total += share
                share /= total
                share *= xp.astype(block, xp.float64) - mean
                mean += share
    found: Array = xp.astype(mean, dtype)  # some weight is not zero: the plan has refused others
    return found


def floors(floor: float, floor_on: Floored, count: int) -> list[tuple[float, float]]:
    """The least Fisher of each model before and after it is divided by its size.

    >>> floors(1e-6, "target", 2)
    [(1e-06, 1e-200), (0.0, 1e-200)]
    """
    if floor_on == "all":
        return [(0.0, max(floor, NOTHING))] * count
    return [(floor if i == 0 else 0.0, NOTHING) for i in range(count)]


def fisher_scales(scan: StatisticsScan, *, weight: Sequence[float], normalize_by: Norm, **_: Any) -> list[float]:
    """The size of each model's Fisher over all entries that are fused by it.

    Raises:
        FuseError: one is zero everywhere.
    """
    if normalize_by == "none":
        return [1.0] * len(weight)

    def look(fishers: Iterable[Array], base: Array | None, place: Place) -> tuple[int, list[float]]:
        sums, size = [], 0
        for own in fishers:
            xp = array_api_compat.array_namespace(own)
            wide = xp.astype(xp.reshape(own, (-1,)), xp.float64)
            size = wide.shape[0]
            sums.append(float(xp.sum(wide if normalize_by == "mean" else wide * wide)))
        return size, sums

    found = scan.of("fisher", look)
    size = sum(count for count, _ in found)
    sums = np.array([row for _, row in found]).sum(axis=0)
    if not size:
        return [1.0] * len(weight)
    for i, one in enumerate(sums):
        if not one > 0:
            raise FuseError(
                "a Fisher is zero everywhere",
                where=f"that of model {i + 1}",
                hint="was it measured on this model, with its head?",
            )
    means = sums / size
    return [float(s) for s in (means if normalize_by == "mean" else np.sqrt(means))]
