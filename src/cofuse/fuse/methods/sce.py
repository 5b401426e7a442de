"""SCE: select by variance, calculate weights, erase what disagrees."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import array_api_compat

from . import steps as plain
from .method import Array, Place, Scan
from .select import EVERY, Cut, cuts
from .steps import Steps, steps_for

# mergekit's bounds: a sum of mean squares below which all models weigh the same, and the least that weights add up to.
# They are absolute, so that finetunes whose changes are below about 1e-3 are weighted equally.
SMALL = 1e-6


@dataclass(frozen=True, slots=True)
class Selection:
    """What a survey finds: which variances are large enough, and each model's weight."""

    cut: Cut
    weight: tuple[float, ...]


def sce(
    models: Iterable[Array],
    base: Array | None,
    *,
    known: Selection,
    place: Place = Place(),  # noqa: B008 - frozen
    select_topk: float = 1.0,
    int8_mask: bool = False,
    steps: Steps = plain,
) -> Array:
    """Task vectors where they differ most between the models, weighted by their size, with the elected sign.

        d_i = t_i - base
        S   = the entries with the int(select_topk v) largest variances over i, of the v that are not 0; d_i = 0 outside S
        w_i = mean(d_i^2) / sum_j mean(d_j^2)               over the tensor; 1 / models where that sum is below 1e-6
        s   = sign(sum_i d_i), + for 0
        out = base + sum_{sign(d_i) = s} w_i d_i / max(sum_{sign(d_i) = s} w_i, 1e-6)

    Args:
        models: one block of each model, all of one shape and floating dtype.
        base: the same block of the base.
        known: what `survey` found.
        place: where the block lies.
        select_topk: the share of entries that is selected, in [0, 1]; 1 selects all, also where the variance is 0; the survey
            has used it.
        int8_mask: no effect: it saves mergekit memory.
        steps: plain or compiled.

    Returns:
        An array of that shape and dtype. As mergekit's `sce`. Of equal variances at the threshold the first in the tensor are
        selected; mergekit leaves that to `topk`. Variances are computed in float64.

    Source: FuseChat, arXiv 2408.07990, sec. 3.3, by tensor as there; the bounds are mergekit's.

    >>> import torch
    >>> from cofuse.checkpoint import Memory
    >>> from cofuse.fuse import fuse
    >>> base, a, b = (Memory({"x": torch.tensor(x)}) for x in ([0.0, 0.0, 0.0], [3.0, 1.0, 0.0], [-1.0, 1.0, 0.0]))
    >>> fuse("sce", [a, b], base=base).read("x")
    tensor([3., 1., 0.])
    """
    assert base is not None  # the plan refuses this method without a base
    stack = stacked(models, base)
    if known.cut != EVERY:
        selected(stack, known.cut, place, steps)
    return steps.elect(stack, base, known.weight, known.weight, scale=1.0, normalize=True, count=False, least=SMALL)


def sce_selection(scan: Scan, *, select_topk: float, **_: Any) -> Selection:
    """The threshold on the variance, then the weights of what it selects."""
    cut = EVERY
    if select_topk < 1:
        ((cut,),) = cuts(
            scan,
            lambda models, base: [_variance(models, base)],
            lambda _, nonzero: [[int(select_topk * found) for found in nonzero]],
        )

    def look(models: Iterable[Array], base: Array | None, place: Place) -> tuple[int, list[float]]:
        assert base is not None
        stack = stacked(models, base)
        steps = steps_for(stack)
        if cut != EVERY:
            selected(stack, cut, place, steps)
        return stack.shape[1], [steps.squares(delta) for delta in stack]

    blocks = scan(look)
    size = sum(entries for entries, _ in blocks)
    means = [sum(squares) / size for squares in zip(*(found for _, found in blocks), strict=True)]
    whole = sum(means)
    return Selection(cut, tuple(m / whole if whole >= SMALL else 1 / len(means) for m in means))


def stacked(models: Iterable[Array], base: Array) -> Array:
    """The task vectors of a block, [models, entries]."""
    xp = array_api_compat.array_namespace(base)
    held = list(models)
    found: Array = xp.empty((len(held), *base.shape), dtype=base.dtype, device=array_api_compat.device(base))
    for i, model in enumerate(held):
        found[i] = model
        found[i] -= base
    return found


def selected(stack: Array, cut: Cut, place: Place, steps: Steps) -> None:
    """Set to 0, in place, what lies behind the cut on the variance."""
    spread = steps.variance(stack)
    until = cut.until(spread, place.index, steps)
    # What is kept of the variances says what is kept of the rest.
    steps.trim(spread, (cut.value, until), (float("inf"), 0), 1.0)
    xp = array_api_compat.array_namespace(stack)
    stack *= xp.astype(spread != 0, stack.dtype)


def _variance(models: Iterable[Array], base: Array | None) -> Array:
    assert base is not None
    stack = stacked(models, base)
    return steps_for(stack).variance(stack)
