"""A model's values where they are near the base's, and a step towards them where they are not."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import array_api_compat

from .method import Array

# mergekit divides by no smaller a difference.
LEAST = 1e-6


def nearswap(models: Iterable[Array], base: Array | None, *, t: float) -> Array:
    """The base moved towards the model, entry by entry, by t at most.

        out = w model + (1 - w) base,   w = min(1, t / |base - model|)

    which is the model's value, held within t of the base's.

    Args:
        models: one block of the one model.
        base: the same block of the base.
        t: the longest step, in the unit of the weights.

    Returns:
        An array of that shape and dtype. As mergekit's `nearswap`, which floors the difference at 1e-6 (felt only when
        t is smaller than that) and leaves the base for a negative t. In bf16 it rounds w and both products; here only
        the result is.

    Source: the model card of alchemonaut/QuartetAnemoi-70B-t0.0001; there is no paper.

    >>> import numpy as np
    >>> nearswap([np.array([1.1, 5.0])], np.array([1.0, 1.0]), t=0.5)
    array([1.1, 1.5])
    """
    assert base is not None  # the plan refuses this method without a base
    (model,) = models
    if t <= 0:
        return base
    xp: Any = array_api_compat.array_namespace(base)
    if t >= LEAST:
        lowest = base - t
        base += t
        return xp.minimum(xp.maximum(model, lowest), base)  # type: ignore[no-any-return]
    model -= base
    model *= t / xp.maximum(abs(model), xp.full_like(model, LEAST))
    base += model
    return base
