"""DARE: drop entries of the task vectors at random, and rescale."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from . import steps as plain
from .method import Array, Place, Scan
from .sparsify import By, Drop, Sign, Sparsity, Whole, elected_sum, rescaled, sparse_sum
from .steps import Steps


def dare_linear(
    models: Iterable[Array],
    base: Array | None,
    *,
    weight: Sequence[float],
    known: Sparsity,
    place: Place = Place(),  # noqa: B008 - frozen
    density: Sequence[float] = (),
    scale: float = 1.0,
    normalize: bool = False,
    rescale: bool = True,
    rescale_by: By = "l1",
    int8_mask: bool = False,
    steps: Steps = plain,
) -> Array:
    """The base plus the sum of randomly thinned task vectors.

        m_i ~ Bernoulli(density_i) for each entry
        out = base + lambda sum_i w_i r_i m_i (t_i - base)        (divided by sum_i w_i when normalised)

    Args:
        models: one block of each model, all of one shape and floating dtype; taken one at a time.
        base: the same block of the base.
        weight: w_i, one for each model; no unit.
        known: what `survey` found.
        place: where the block lies, which the masks are drawn by.
        density: the probability of being kept, in [0, 1], one for each model; the survey has used it.
        scale: lambda.
        normalize: divide by the sum of the weights.
        rescale: r_i is not 1.
        rescale_by: "l1": r_i gives the tensor's L1 norm back, as in mergekit; "density": r_i = 1 / density_i, as in the paper
            and in PEFT.
        int8_mask: no effect.
        steps: plain or compiled.

    Returns:
        An array of that shape and dtype. As mergekit's `dare_linear`, but for which entries are drawn: by a counter keyed by
        the recipe's seed, the tensor, the model and the entry's place (see the module `random`), where mergekit draws
        from the process's generator.

    Source: Language Models are Super Mario, arXiv 2311.03099, sec. 3.2, eq. 1.

    >>> import torch
    >>> from cofuse.checkpoint import Memory
    >>> from cofuse.fuse import fuse
    >>> base, a = Memory({"x": torch.zeros(6)}), Memory({"x": torch.ones(6)})
    >>> fuse("dare_linear", [a], base=base, density=0.5, rescale_by="density").read("x").unique()
    tensor([0., 2.])
    """
    return sparse_sum(models, base, known, place, weight=weight, scale=scale, normalize=normalize, steps=steps)


def dare_ties(
    models: Iterable[Array],
    base: Array | None,
    *,
    weight: Sequence[float],
    known: Sparsity,
    place: Place = Place(),  # noqa: B008 - frozen
    density: Sequence[float] = (),
    scale: float = 1.0,
    normalize: bool = False,
    rescale: bool = True,
    rescale_by: By = "l1",
    sign: Sign = "sum",
    int8_mask: bool = False,
    steps: Steps = plain,
) -> Array:
    """The masks of `dare_linear`, then the elected sign of `ties`; arguments as there.

    As mergekit's `dare_ties`, whose default is not to normalise, but for which entries are drawn.

    Source: arXiv 2311.03099 for the masks, arXiv 2306.01708 for the sign.

    >>> import torch
    >>> from cofuse.checkpoint import Memory
    >>> from cofuse.fuse import fuse
    >>> base, a, b = (Memory({"x": torch.tensor(x)}) for x in ([0.0, 0.0], [1.0, 1.0], [2.0, -3.0]))
    >>> fuse("dare_ties", [a, b], base=base, density=1.0).read("x")
    tensor([ 3., -3.])
    """
    return elected_sum(
        models, base, known, place, weight=weight, scale=scale, normalize=normalize, sign=sign, steps=steps
    )


def dare_masks(scan: Scan, *, density: Sequence[float], rescale: bool, rescale_by: By, **_: Any) -> Sparsity:
    """The norms that the masks leave."""
    masks = [Drop(d) if 0 < d < 1 else Whole(d >= 1) for d in density]
    return rescaled(scan, masks, density, rescale, rescale_by)
