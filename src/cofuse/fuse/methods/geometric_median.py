"""The point with the least sum of distances to the models."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from .gram import Matrix, combine, in_groups, of_group, products_about, square_distances
from .method import Array, Place, Scan

# Steps until no coefficient moves by more than this share of itself: that of a model far off is tiny, and matters. A
# step costs a product of a matrix [models, models].
SETTLED = 1e-11
# A model this many times as far off as the typical one is looked at anew.
FAR = 1e3


def geometric_median(
    models: Iterable[Array],
    base: Array | None,
    *,
    weight: Sequence[float],
    eps: float = 1e-6,
    max_iter: int = 1000,
    scope: str = "model",
    known: dict[str, Sequence[float]],
    place: Place,
) -> Array:
    """The smoothed weighted geometric median.

        out = argmin_v sum_i w_i |v - t_i|
        by Weiszfeld's steps v <- sum_i b_i t_i / sum_i b_i,   b_i = w_i / max(eps, |v - t_i|)

    from the weighted mean, where w sums to 1. Less than half of the weight may be anywhere: the result
    stays near the rest.

    Args:
        models: one block of each model, taken one at a time.
        base: not used; the median moves with its models, wherever they are measured from.
        weight: w_i >= 0, one for each model; no unit.
        eps: distances count as this much at least, in the unit of the weights.
        max_iter: steps at most.
        scope: `model`: distances of whole models, and the same coefficients everywhere; `tensor`: each tensor's own.
        known: the coefficients by tensor, or under "" for all, from `geometric_median_shares`.
        place: which tensor the block belongs to.

    Returns:
        An array of that shape and dtype. The paper's algorithm takes a fixed few steps (3), because each is a round of
        communication; the steps here are on the coefficients alone and go on until they settle, to 11 digits.

    Source: Robust aggregation for federated learning, Pillutla et al., arXiv 1912.13445, algorithm 2 (smoothed
    Weiszfeld).

    >>> from .gram import at_hand
    >>> models, own = [np.array([x]) for x in (0.0, 1.0, 1e9)], dict(weight=[1, 1, 1])
    >>> known = geometric_median_shares(at_hand(models), **own)
    >>> geometric_median(models, None, **own, known=known, place=Place()).round(3)
    array([1.])
    """
    return combine(models, None, of_group(known, place))


def geometric_median_shares(
    scan: Scan, *, weight: Sequence[float], eps: float = 1e-6, max_iter: int = 1000, scope: str = "model"
) -> dict[str, Sequence[float]]:
    """The models' coefficients, by tensor or under "" for all."""
    start = np.asarray(weight, np.float64) / sum(weight)
    distances = in_groups(square_distances(scan), scope)
    # Products about the model that is nearest to all: the result is near it, whatever the bad ones do.
    middle = {name: int(np.argmin(np.sqrt(d) @ start)) for name, d in distances.items()}
    products = {
        name: (d[k] + d[k][:, None] - d) / 2 for (name, d), k in zip(distances.items(), middle.values(), strict=True)
    }
    if any(d.max() > FAR**2 * np.median(d[middle[name]]) for name, d in distances.items()):
        # Somebody is so far off that the products of the others with it are lost in the differences of its distances.
        products = dict(in_groups(products_about(scan, middle), scope))
    return {name: tuple(map(float, _settle(start, g, eps, max_iter))) for name, g in products.items()}


def _settle(weight: Matrix, products: Matrix, eps: float, max_iter: int) -> Matrix:
    shares = weight
    for _ in range(max_iter):
        # |v - t_i|^2 for v = sum_j c_j t_j, sum_j c_j = 1.
        pulled = products @ shares
        away = np.sqrt(np.maximum(0.0, shares @ pulled - 2 * pulled + np.diag(products)))
        moved = weight / np.maximum(away, eps)
        moved /= moved.sum()
        done = bool((np.abs(moved - shares) <= SETTLED * moved).all())
        shares = moved
        if done:
            break
    return shares
