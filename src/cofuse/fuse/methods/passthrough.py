"""One model as it is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .method import Array


def passthrough(models: Iterable[Array], base: Array | None, *, scale: Sequence[float] = (1.0,)) -> Array:
    """The one model, times a number: for stacks of layers from several models.

        out = scale t

    Args:
        models: one block of the one model.
        base: not used.
        scale: one number; no unit.

    Returns:
        An array of that shape and dtype. As mergekit's `passthrough`.

    Source: depth up-scaling, SOLAR, arXiv 2312.15166, sec. 2 (stacked layers); the scale: mergekit's documentation.

    >>> import numpy as np
    >>> passthrough([np.array([2.0])], None, scale=[0.5])
    array([1.])
    """
    (model,) = models
    if scale[0] != 1.0:
        model *= scale[0]
    return model
