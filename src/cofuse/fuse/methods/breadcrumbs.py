"""Model Breadcrumbs: neither the outliers nor the noise."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from . import steps as plain
from .method import Array, Place, Scan
from .sparsify import By, Sign, Sparsity, elected_sum, rescaled, sparse_sum
from .steps import Steps
from .ties import bands


def breadcrumbs(
    models: Iterable[Array],
    base: Array | None,
    *,
    weight: Sequence[float],
    known: Sparsity,
    place: Place = Place(),  # noqa: B008 - frozen
    density: Sequence[float] = (),
    gamma: Sequence[float] = (),
    scale: float = 1.0,
    normalize: bool = False,
    rescale: bool = False,
    rescale_by: By = "l1",
    int8_mask: bool = False,
    steps: Steps = plain,
) -> Array:
    """The base plus the sum of the task vectors without their largest and their smallest entries.

        n entries of the tensor, by magnitude, the largest first: int(gamma_i n) are dropped, the next int(density_i n) kept
        out = base + lambda sum_i w_i kept_i(t_i - base)        (divided by sum_i w_i when normalised)

    Args:
        models: one block of each model, all of one shape and floating dtype; taken one at a time.
        base: the same block of the base.
        weight: w_i, one for each model; no unit.
        known: what `survey` found.
        place: where the block lies.
        density: the share of entries that is kept, in [0, 1], one for each model; the survey has used it.
        gamma: the share of the largest entries that is dropped first, in [0, 1], one for each model; less of it where both
            do not fit; the survey has used it.
        scale: lambda.
        normalize: divide by the sum of the weights.
        rescale: give each trimmed task vector its norm back; the survey has used it.
        rescale_by: how, see the module `sparsify`.
        int8_mask: no effect.
        steps: plain or compiled.

    Returns:
        An array of that shape and dtype. As mergekit's `breadcrumbs`, by tensor; density 1 drops no outliers either. Of equal
        magnitudes at a threshold, the first in the tensor counts as the larger; mergekit leaves that to an unstable sort.
        The paper's beta, the share of the smallest that is dropped, is 1 - density - gamma. With gamma 0 it is PEFT's
        `magnitude_prune`.

    Source: Model Breadcrumbs, arXiv 2312.06795, sec. 3.

    >>> import torch
    >>> from cofuse.checkpoint import Memory
    >>> from cofuse.fuse import fuse
    >>> base, a = (Memory({"x": torch.tensor(x)}) for x in ([0.0] * 4, [9.0, 0.1, -3.0, 2.0]))
    >>> fuse("breadcrumbs", [a], base=base, density=0.5, gamma=0.25).read("x")
    tensor([ 0.,  0., -3.,  2.])
    """
    return sparse_sum(models, base, known, place, weight=weight, scale=scale, normalize=normalize, steps=steps)


def breadcrumbs_ties(
    models: Iterable[Array],
    base: Array | None,
    *,
    weight: Sequence[float],
    known: Sparsity,
    place: Place = Place(),  # noqa: B008 - frozen
    density: Sequence[float] = (),
    gamma: Sequence[float] = (),
    scale: float = 1.0,
    normalize: bool = False,
    rescale: bool = False,
    rescale_by: By = "l1",
    sign: Sign = "sum",
    int8_mask: bool = False,
    steps: Steps = plain,
) -> Array:
    """The mask of `breadcrumbs`, then the elected sign of `ties`; arguments as there.

    As mergekit's `breadcrumbs_ties`, whose default is not to normalise.

    Source: arXiv 2312.06795 for the mask, arXiv 2306.01708 for the sign.

    >>> import torch
    >>> from cofuse.checkpoint import Memory
    >>> from cofuse.fuse import fuse
    >>> base, a, b = (Memory({"x": torch.tensor(x)}) for x in ([0.0] * 4, [9.0, 0.1, -3.0, 2.0], [9.0, 0.1, 4.0, 3.0]))
    >>> fuse("breadcrumbs_ties", [a, b], base=base, density=0.5, gamma=0.25).read("x")
    tensor([0., 0., 4., 5.])
    """
    return elected_sum(
        models, base, known, place, weight=weight, scale=scale, normalize=normalize, sign=sign, steps=steps
    )


def breadcrumbs_masks(
    scan: Scan, *, density: Sequence[float], gamma: Sequence[float], rescale: bool, rescale_by: By, **_: Any
) -> Sparsity:
    """Each model's two thresholds."""
    return rescaled(scan, bands(scan, density, gamma), density, rescale, rescale_by)
