"""The mean of task vectors, none longer than a bound."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from .gram import about_base, combine, in_groups, of_group, square_norms
from .method import Array, Place, Scan


def norm_clip(
    models: Iterable[Array],
    base: Array | None,
    *,
    weight: Sequence[float],
    bound: float = 0.0,
    normalize: bool = True,
    scope: str = "model",
    known: dict[str, Sequence[float]],
    place: Place,
) -> Array:
    """The base plus the weighted mean of the task vectors, each shortened to a bound.

        out = base + sum_i w_i d_i min(1, M / |d_i|) / sum_i w_i,   d_i = t_i - base

    Args:
        models: one block of each model, taken one at a time.
        base: the same block of the base.
        weight: w_i, one for each model; no unit.
        bound: M, in the unit of the weights; 0 for the median of the |d_i| (the mean of the two middle ones of an even
        number).
        normalize: divide by the sum of the weights.
        scope: `model`: norms of whole task vectors, and the same coefficients everywhere; `tensor`: each tensor's own.
        known: the coefficients by tensor, or under "" for all, from `norm_clip_shares`.
        place: which tensor the block belongs to.

    Returns:
        An array of that shape and dtype. The paper's bound is a number, to which the server may add noise; the median
        of the norms as a bound that needs no number is an addition here.

    Source: Can you really backdoor federated learning?, Sun et al., arXiv 1911.07963, sec. 4 (norm thresholding).

    >>> from .gram import at_hand
    >>> base, models, own = np.zeros(1), [np.array([x]) for x in (1.0, 2.0, 90.0)], dict(weight=[1, 1, 1])
    >>> known = norm_clip_shares(at_hand(models, base), **own)
    >>> norm_clip(models, base, **own, known=known, place=Place()).round(4)
    array([1.6667])
    """
    return combine(models, base, of_group(known, place))


def norm_clip_shares(
    scan: Scan, *, weight: Sequence[float], bound: float = 0.0, normalize: bool = True, scope: str = "model"
) -> dict[str, Sequence[float]]:
    """The coefficients of the base and of the models, by tensor or under "" for all."""
    whole = math.fsum(weight) if normalize else 1.0
    known: dict[str, Sequence[float]] = {}
    for name, squares in in_groups(square_norms(scan), scope).items():
        norms = np.sqrt(squares)
        most = bound or float(np.median(norms))
        clipped = [min(1.0, most / n) if n else 1.0 for n in norms]
        known[name] = about_base(w * c / whole for w, c in zip(weight, clipped, strict=True))
    return known
