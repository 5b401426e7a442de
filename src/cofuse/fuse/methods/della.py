"""DELLA: drop entries of the task vectors at random, the small ones more often."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ...errors import FuseError
from . import steps as plain
from .method import Array, Place, Scan
from .sparsify import By, DropByRank, Mask, Sign, Sparsity, Whole, elected_sum, rescaled, sparse_sum
from .steps import Steps


def della(
    models: Iterable[Array],
    base: Array | None,
    *,
    weight: Sequence[float],
    known: Sparsity,
    place: Place = Place(),  # noqa: B008 - frozen
    density: Sequence[float] = (),
    epsilon: Sequence[float] = (),
    scale: float = 1.0,
    normalize: bool = True,
    rescale: bool = True,
    rescale_by: By = "l1",
    sign: Sign = "sum",
    int8_mask: bool = False,
    steps: Steps = plain,
) -> Array:
    """Task vectors thinned at random by the rank of each entry in its row, then the elected sign of `ties`.

        p   = density_i - epsilon_i + 2 epsilon_i r / (n - 1)     for the r-th smallest magnitude of a row of n, r from 0
        m_i ~ Bernoulli(p) for each entry
        d_i = w_i r_i m_i (t_i - base), elected and merged as in `ties`

    Args:
        models: whole rows of each model, [rows, n] (a vector is one row), all of one floating dtype.
        base: the same rows of the base.
        weight: w_i, one for each model; no unit.
        known: what `survey` found.
        place: where the rows lie, which the masks are drawn by.
        density: the mean probability of being kept, in [0, 1], one for each model; the survey has used it.
        epsilon: how far the probabilities reach to both sides of it, one for each model; the survey has used it.
        scale: lambda.
        normalize: divide by the weights of those that agree; without it they are summed.
        rescale: what is kept is rescaled.
        rescale_by: "l1": each task vector is given the tensor's L1 norm back, as in mergekit; "density": each entry is divided
            by its own p, as in the paper.
        sign: elect by the sum, or by the count of signs.
        int8_mask: no effect.
        steps: plain or compiled.

    Returns:
        An array of that shape and dtype. As mergekit's `della` but for which entries are drawn (as in `dare_linear`), ranks of
        equal magnitudes (by their place here, by an unstable sort there), tensors of more than two dimensions (a row is all
        but the first here; mergekit ranks along the second dimension alone) and rows of one entry (p is the density here;
        mergekit fails).

    Source: DELLA-Merging, arXiv 2406.11617, sec. 3.

    >>> import torch
    >>> from cofuse.checkpoint import Memory
    >>> from cofuse.fuse import fuse
    >>> base, a = Memory({"x": torch.zeros(2, 3)}), Memory({"x": torch.ones(2, 3)})
    >>> bool((fuse("della", [a], base=base, density=0.5, epsilon=0.2).read("x").sum() - 6).abs() < 1e-5)
    True
    """
    return elected_sum(
        models, base, known, place, weight=weight, scale=scale, normalize=normalize, sign=sign, steps=steps
    )


def della_linear(
    models: Iterable[Array],
    base: Array | None,
    *,
    weight: Sequence[float],
    known: Sparsity,
    place: Place = Place(),  # noqa: B008 - frozen
    density: Sequence[float] = (),
    epsilon: Sequence[float] = (),
    scale: float = 1.0,
    normalize: bool = False,
    rescale: bool = True,
    rescale_by: By = "l1",
    int8_mask: bool = False,
    steps: Steps = plain,
) -> Array:
    """The masks of `della`, then the plain weighted sum of `dare_linear`; arguments as there.

    As mergekit's `della_linear`, with the exceptions named at `della`.

    Source: arXiv 2406.11617, sec. 3.

    >>> import torch
    >>> from cofuse.checkpoint import Memory
    >>> from cofuse.fuse import fuse
    >>> base, a = Memory({"x": torch.zeros(2, 3)}), Memory({"x": torch.ones(2, 3)})
    >>> fuse("della_linear", [a], base=base, density=1.0, weights=[0.5]).read("x")
    tensor([[0.5000, 0.5000, 0.5000],
            [0.5000, 0.5000, 0.5000]])
    """
    return sparse_sum(models, base, known, place, weight=weight, scale=scale, normalize=normalize, steps=steps)


def della_masks(
    scan: Scan, *, density: Sequence[float], epsilon: Sequence[float], rescale: bool, rescale_by: By, **_: Any
) -> Sparsity:
    """The norms that the masks leave."""
    masks: list[Mask] = []
    for d, e in zip(density, epsilon, strict=True):
        if not 0 < d < 1:
            masks.append(Whole(d >= 1))
            continue
        masks.append(DropByRank(d, e, rescale and rescale_by == "density"))
    return rescaled(scan, masks, density, rescale, rescale_by)


def check_probabilities(count: int, *, density: Sequence[float], epsilon: Sequence[float], **_: Any) -> None:
    """Refuse probabilities outside (0, 1), as mergekit does.

    Raises:
        FuseError: density - epsilon or density + epsilon lies outside.
    """
    for d, e in zip(density, epsilon, strict=True):
        if 0 < d < 1 and not (d - e > 0 and d + e < 1):
            raise FuseError(
                "a probability of being kept lies outside (0, 1)",
                where="della",
                got=f"density {d}, epsilon {e}",
                expected="density - epsilon > 0 and density + epsilon < 1",
                hint="a smaller epsilon",
            )
