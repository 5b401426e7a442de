"""Weights from a grid or at random."""

from __future__ import annotations

from ..searching import mixtures
from .way import Chosen, Pool, Tried, mean_of


def search(pool: Pool) -> Chosen:
    """The best of 51 mixtures by held-out score; see `searching.mixtures`: a grid for two models, draws for more."""
    if len(pool.models) == 1:
        return Chosen(mean_of(pool.models), {pool.models[0]: "in: the only one"})
    weights = mixtures(len(pool.models))
    recipes = [mean_of(pool.models, one) for one in weights]
    scores = pool.score(recipes)
    names = [", ".join(f"{w:.2f}" for w in one) for one in weights]
    tried = tuple(Tried(n, r, s) for n, r, s in zip(names, recipes, scores, strict=True))
    best = max(range(len(tried)), key=lambda i: (scores[i], -i))
    reasons = {m: f"weight {w:.3f}" for m, w in zip(pool.models, weights[best], strict=True)}
    return Chosen(recipes[best], reasons, scores[best], tried)
