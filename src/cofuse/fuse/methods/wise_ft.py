"""Interpolation between a base and one finetuned model."""

from __future__ import annotations

from collections.abc import Iterable

from .gram import combine
from .method import Array


def wise_ft(models: Iterable[Array], base: Array | None, *, alpha: float = 0.5) -> Array:
    """The straight line from the base to the model.

        out = (1 - alpha) base + alpha model

    Args:
        models: one block of the one model.
        base: the same block of the base.
        alpha: how far along, in [0, 1]; no unit. The paper's choice where nothing is known is 1/2.

    Returns:
        An array of that shape and dtype. The same as `task_arithmetic` of one model with weight alpha.

    Source: Robust fine-tuning of zero-shot models, arXiv 2109.01903, eq. 1.

    >>> import numpy as np
    >>> wise_ft([np.array([3.0])], np.array([1.0]), alpha=0.25)
    array([1.5])
    """
    return combine(models, base, wise_ft_shares(1, alpha=alpha))


def wise_ft_shares(count: int, *, alpha: float = 0.5) -> tuple[float, float]:
    """The coefficients of the base and of the model."""
    return 1 - alpha, alpha
