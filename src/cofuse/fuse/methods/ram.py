"""Reinforced Agent Merging: what one model alone changed is kept whole, what several changed is averaged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from array_api_compat import array_namespace, is_numpy_array

from .method import Array, Place, Scan


def ram(models: Iterable[Array], base: Array | None, *, epsilon: float = 1e-5) -> Array:
    """The base plus the mean, at each entry, of the changes of those models that changed it.

        out = base + sum_i m_i (t_i - base) / max(1, sum_i m_i),        m_i = |t_i - base| > epsilon

    Args:
        models: one block of each model, all of one shape and floating dtype; taken one at a time.
        base: the same block of the base.
        epsilon: changes up to this size count as none; in units of the weights.

    Returns:
        An array of that shape and dtype.

    Source: Reinforced Agent Merging (RAM), arXiv 2601.13572; as mergekit's `ram`, which
    rounds the changes to the models' dtype first; here they are float32.

    >>> import numpy as np
    >>> ram([np.array([1.0, 2.0]), np.array([0.0, 4.0])], np.zeros(2))
    array([1., 3.])
    """
    assert base is not None  # the plan refuses this method without a base
    mean, _ = mean_of_changes(models, base, epsilon)
    base += mean
    return base


def ramplus_tl(
    models: Iterable[Array],
    base: Array | None,
    *,
    known: Sequence[float],
    r: float = 0.1,
    alpha: float = 0.2,
    epsilon: float = 1e-5,
) -> Array:
    """As `ram`, with what one model alone changed made larger, the more it shares with others.

        lambda_i = 1 + r min(alpha, rho_i),    rho_i = (entries that i and others changed) / (entries that i alone changed)
        out = base + lambda_i (t_i - base)            where i alone changed the entry
              base + mean of the changes               where several did

    Args:
        models: one block of each model, all of one shape and floating dtype; taken one at a time.
        base: the same block of the base.
        known: lambda_i, from the survey, which counts over the tensor ("tensor-local").
        r: how much larger, as a share of rho.
        alpha: the most that rho may count for.
        epsilon: changes up to this size count as none; in units of the weights.

    Returns:
        An array of that shape and dtype.

    Source: as `ram`; mergekit's `ramplus_tl`. A model with no entry of its own has lambda 1: it has
    nothing to make larger.

    >>> import numpy as np
    >>> ramplus_tl([np.array([1.0, 2.0]), np.array([0.0, 4.0])], np.zeros(2), known=[1.5, 1.0])
    array([1.5, 3. ])
    """
    assert base is not None
    mean, factor = mean_of_changes(models, base, epsilon, known)
    mean *= factor
    base += mean
    return base


def survey_shares(scan: Scan, *, r: float = 0.1, alpha: float = 0.2, epsilon: float = 1e-5) -> list[float]:
    """Each model's lambda; see `ramplus_tl`."""

    def look(models: Iterable[Array], base: Array | None, place: Place) -> list[tuple[int, int]]:
        assert base is not None
        return _counter(base)(models, base, epsilon)

    counts = np.array(scan(look), np.int64).sum(axis=0)  # [models, (shared, alone)]
    return [1 + r * min(shared / alone, alpha) if alone else 1.0 for shared, alone in counts.tolist()]


def mean_of_changes(
    models: Iterable[Array], base: Array, epsilon: float, factors: Sequence[float] = ()
) -> tuple[Array, Array]:
    """At each entry the mean over the models that changed it; and the factor of the one that did, 1 if others did too."""
    xp = array_namespace(base)
    mean, count, factor = xp.zeros_like(base), xp.zeros_like(base), xp.ones_like(base)
    for i, tuned in enumerate(models):
        change = tuned  # ours to overwrite
        change -= base
        changed = xp.abs(change) > epsilon
        count += changed
        # A running mean: models that agree give what they agree on.
        change -= mean
        change *= changed
        change /= xp.clip(count, 1, None)
        mean += change
        if factors:
            own = xp.where(count == 1, xp.full_like(base, factors[i]), xp.ones_like(base))
            factor = xp.where(changed, own, factor)
    return mean, factor


def count_shares(models: Iterable[Array], base: Array, epsilon: float) -> list[tuple[int, int]]:
    """For each model, how many entries it and others changed, and how many it alone."""
    xp = array_namespace(base)
    changed = [xp.abs(t - base) > epsilon for t in models]
    count = sum(xp.astype(c, xp.int32) for c in changed)
    return [(int(xp.sum(c & (count > 1))), int(xp.sum(c & (count == 1)))) for c in changed]


def _counter(base: Array) -> Callable[[Iterable[Array], Array, float], list[tuple[int, int]]]:
    if is_numpy_array(base):
        from ..kernels.ram import count_shares as compiled

        return compiled
    return count_shares
