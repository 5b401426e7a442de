"""WiSE-FT: how far to go from the base towards the mean of the models."""

from __future__ import annotations

from ....fuse import ModelInput, Recipe
from .way import Chosen, Pool, Tried, base_of, mean_of

STEPS = 10


def wise(pool: Pool) -> Chosen:
    """(1 - alpha) base + alpha mean(models), alpha = 0, 0.1, ..., 1 by held-out score; of equal ones the smallest alpha.

    Source: Robust fine-tuning of zero-shot models, arXiv 2109.01903, eq. 1; here the mean of several
    in place of one model.
    """
    base = base_of(pool)
    alphas = [i / STEPS for i in range(STEPS + 1)]
    towards = pool.models[0] if len(pool.models) == 1 else mean_of(pool.models)
    recipes = [
        Recipe.model_validate(
            {
                "merge_method": "wise_ft",
                "base_model": base,
                "models": (ModelInput(model=towards),),
                "parameters": {"alpha": alpha},
            }
        )
        for alpha in alphas
    ]
    scores = pool.score(recipes)
    tried = tuple(Tried(f"alpha {a:g}", r, s) for a, r, s in zip(alphas, recipes, scores, strict=True))
    best = max(range(len(tried)), key=lambda i: (scores[i], -i))
    share = alphas[best] / len(pool.models)
    reasons = dict.fromkeys(pool.models, f"weight {share:.3f}") | {base: f"weight {1 - alphas[best]:.3f}"}
    return Chosen(recipes[best], reasons, scores[best], tried)
