"""PCB-Merging: entries weighed by how they compete within their own model and with the other models."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from array_api_compat import array_namespace

from .method import Array, Place, Scan
from .quantile import order_statistics

TAIL = 1e-4  # share of the smallest and of the largest magnitudes that are set to the last one that is kept


@dataclass(frozen=True, slots=True)
class Balance:
    """What is known of one model's whole task vector.

    Attributes:
        low, high: the magnitudes that its entries are clamped to.
        threshold, most: the score from which entries are kept, and the largest one.
    """

    low: float
    high: float
    threshold: float = 0.0
    most: float = 0.0


def survey_balance(
    scan: Scan, *, weight: Sequence[float], density: float = 0.1, scale: float = 1.0
) -> tuple[Balance | None, ...]:
    """Bounds and thresholds of each model that has a weight, over all tensors together; see `pcb`."""
    counted = [i for i, w in enumerate(weight) if w]

    def magnitudes(models: Iterable[Array], base: Array | None, place: Place) -> list[Array]:
        return [array_namespace(d).abs(d) for d in _changes(models, base, weight)]

    bounds = order_statistics(
        scan, magnitudes, len(counted), lambda n: (int(n * TAIL), max(int(n * TAIL), int(n * (1 - TAIL) - 1)))
    )
    clamped = [Balance(*pair) for pair in bounds if pair]

    def scores(models: Iterable[Array], base: Array | None, place: Place) -> list[Array]:
        return _scores(_changes(models, base, weight), clamped)

    cuts = order_statistics(scan, scores, len(clamped), lambda n: (min(n - 1, int(n * (1 - density))), n - 1))
    known: list[Balance | None] = [None] * len(weight)
    for i, b, (threshold, most) in zip(counted, clamped, cuts, strict=False):
        known[i] = Balance(b.low, b.high, threshold, most)
    return tuple(known)


def pcb(
    models: Iterable[Array],
    base: Array | None,
    *,
    known: Sequence[Balance | None],
    weight: Sequence[float],
    density: float = 0.1,
    scale: float = 1.0,
) -> Array:
    """The base plus a mean of the task vectors' entries, weighed by scores of which only the highest count.

        d_i = t_i - base,    c_i = d_i with its magnitude clamped to between the 0.01 % smallest and largest of its model
        within_i = exp(N norm(|c_i|)^2),    across_i = tanh(d_i sum_j d_j)
        s_i = within_i across_i,    b_i = norm(max(s_i, threshold_i))
        out = base + lambda sum_i w_i b_i c_i / sum_i b_i

    norm(x) = (x - min) / (max - min) over all of a model's entries; threshold_i keeps the density's share of them.

    Args:
        models: one block of each model, all of one shape and floating dtype.
        base: the same block of the base.
        known: bounds and thresholds of each model, from the survey of all tensors.
        weight: w_i, one for each model; no unit. Models of weight 0 take no part, and N does not count them.
        density: share of each model's entries that are kept.
        scale: lambda.

    Returns:
        An array of that shape and dtype.

    Source: Parameter competition balancing for model merging, arXiv 2410.02396, sec. 3. Where the paper writes
    softmax over the entries its authors' code, which is followed, has exp and tanh. The entry at the threshold has weight 0. Where all scores of a model are the same, norm is 1.

    >>> import numpy as np
    >>> known = [Balance(0, 2, 0.0, float(np.exp(1) * np.tanh(4)))]
    >>> pcb([np.array([0.0, 2.0])], np.zeros(2), known=known, weight=[1])
    array([0., 2.])
    """
    assert base is not None  # the plan refuses this method without a base
    changes = _changes(models, base, weight)
    parts = [(b, w) for b, w in zip(known, weight, strict=True) if b is not None]
    xp = array_namespace(base)
    total, shares = xp.zeros_like(base), xp.zeros_like(base)
    for change, score, (b, w) in zip(changes, _scores(changes, [b for b, _ in parts]), parts, strict=True):
        spread = b.most - b.threshold
        share = (xp.clip(score, b.threshold, b.most) - b.threshold) / spread if spread > 0 else xp.ones_like(score)
        shares += share
        share *= w * xp.sign(change) * xp.clip(xp.abs(change), b.low, b.high)
        total += share
    total *= scale
    total /= xp.clip(shares, 1e-12, None)
    base += total
    return base


def _changes(models: Iterable[Array], base: Array | None, weight: Sequence[float]) -> list[Array]:
    assert base is not None
    changes = []
    for tuned, w in zip(models, weight, strict=True):
        if w:
            change = tuned  # ours to overwrite
            change -= base
            changes.append(change)
    return changes


def _scores(changes: Sequence[Array], balances: Sequence[Balance]) -> list[Array]:
    found = []
    together = sum(changes)
    for change, b in zip(changes, balances, strict=True):
        xp = array_namespace(change)
        size = xp.clip(xp.abs(change), b.low, b.high)
        spread = b.high - b.low
        size = (size - b.low) / spread if spread > 0 else xp.ones_like(size)
        found.append(xp.exp(len(changes) * size * size) * xp.tanh(change * together))
    return found
