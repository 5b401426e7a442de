"""TIES: trim, elect a sign, merge what agrees."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from . import steps as plain
from .gram import deltas
from .method import Array, Place, Scan
from .select import EVERY, NONE, cuts
from .sparsify import Band, By, Mask, Sign, Sparsity, Whole, elected_sum, rescaled
from .steps import Steps


def ties(
    models: Iterable[Array],
    base: Array | None,
    *,
    weight: Sequence[float],
    known: Sparsity,
    place: Place = Place(),  # noqa: B008 - frozen
    density: Sequence[float] = (),
    scale: float = 1.0,
    normalize: bool = True,
    rescale: bool = False,
    rescale_by: By = "l1",
    sign: Sign = "sum",
    int8_mask: bool = False,
    steps: Steps = plain,
) -> Array:
    """The largest entries of each task vector; of those, the mean of the ones with the elected sign.

        k     = max(1, int(density_i n))                    of the n entries of the tensor
        d_i   = w_i (t_i - base) where abs(t_i - base) is among the k largest, else 0
        s     = sign(sum_i d_i), + for 0
        out   = base + lambda sum_{sign(d_i) = s} d_i / sum_{sign(d_i) = s} w_i

    Args:
        models: one block of each model, all of one shape and floating dtype.
        base: the same block of the base.
        weight: w_i, one for each model; no unit.
        known: what `survey` found.
        place: where the block lies.
        density: the share of entries that is kept, in [0, 1], one for each model; the survey has used it.
        scale: lambda.
        normalize: divide by the weights of those that agree; without it they are summed.
        rescale: give each trimmed task vector its norm back; the survey has used it.
        rescale_by: how, see the module `sparsify`.
        sign: elect by the sum, or by the count of signs.
        int8_mask: no effect.
        steps: plain or compiled.

    Returns:
        An array of that shape and dtype. As mergekit's `ties`. Of equal magnitudes at the threshold the first in the tensor
        are kept, exactly k in all; mergekit leaves which to an unstable sort. The paper trims over the whole model, mergekit
        and this over each tensor. PEFT keeps int(density n) entries, which may be none.

    Source: TIES-Merging, arXiv 2306.01708, sec. 4, algorithm 1.

    >>> import torch
    >>> from cofuse.checkpoint import Memory
    >>> from cofuse.fuse import fuse
    >>> base, a, b = (Memory({"x": torch.tensor(x)}) for x in ([0.0, 0.0, 0.0], [1.0, 0.1, -3.0], [3.0, 0.2, 2.0]))
    >>> fuse("ties", [a, b], base=base, density=0.7).read("x")
    tensor([ 2.,  0., -3.])
    """
    return elected_sum(
        models, base, known, place, weight=weight, scale=scale, normalize=normalize, sign=sign, steps=steps
    )


def ties_masks(scan: Scan, *, density: Sequence[float], rescale: bool, rescale_by: By, **_: Any) -> Sparsity:
    """Each model's threshold."""
    masks = bands(scan, density, [None] * len(density))
    return rescaled(scan, masks, density, rescale, rescale_by)


def bands(scan: Scan, density: Sequence[float], gamma: Sequence[float | None]) -> list[Mask]:
    """The masks that keep a share `density` of each task vector, after a share `gamma` of the largest entries.

    Where gamma is None, at least one entry is kept.
    """
    open_ones = [i for i, d in enumerate(density) if 0 < d < 1]
    masks: list[Mask] = [Whole(d >= 1) for d in density]
    if not open_ones:
        return masks

    def ranks(n: int, _: list[int]) -> list[tuple[int, int]]:
        found = []
        for i in open_ones:
            share = gamma[i]
            if share is None:
                found.append((0, max(1, int(density[i] * n))))
                continue
            target = int(density[i] * n)
            # Fewer outliers are dropped where the density leaves no room for more.
            last = min(n, target + int(share * n))
            found.append((last - target, last))
        return found

    def values(models: Iterable[Array], base: Array | None) -> Iterable[Array]:
        return (delta for i, delta in enumerate(deltas(models, base)) if i in open_ones)

    for i, (inner, outer) in zip(open_ones, cuts(scan, values, ranks), strict=False):
        masks[i] = Whole(True) if (inner, outer) == (NONE, EVERY) else Band(outer, inner)
    return masks
