"""The uniform soup: all of them."""

from __future__ import annotations

from .way import Chosen, Pool, mean_of


def uniform(pool: Pool) -> Chosen:
    """The mean of all models.

    Source: Model soups, arXiv 2203.05482 (uniform soup).
    """
    return Chosen(mean_of(pool.models), dict.fromkeys(pool.models, "in: all are"))
