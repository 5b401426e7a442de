"""Every set of a few models."""

from __future__ import annotations

from itertools import combinations

from ....errors import FuseError
from .way import Chosen, Pool, Tried, mean_among

MOST = 10  # models: 1,023 sets


def exhaustive(pool: Pool) -> Chosen:
    """The best of the means of all sets; of equal ones the smallest.

    Raises:
        FuseError: there are more than ten models; it says how many sets that would be.
    """
    count = len(pool.models)
    if count > MOST:
        raise FuseError(
            "too many models for every set",
            got=f"{count} models, {2**count - 1:,} sets",
            expected=f"at most {MOST} models, {2**MOST - 1:,} sets",
            hint="--way greedy tries about twice as many as there are models",
        )
    names = sorted(pool.models)
    sets = [chosen for size in range(1, count + 1) for chosen in combinations(names, size)]
    recipes = [mean_among(pool, chosen) for chosen in sets]
    scores = pool.score(recipes)
    tried = tuple(Tried(" + ".join(c), r, s) for c, r, s in zip(sets, recipes, scores, strict=True))
    best = max(range(len(tried)), key=lambda i: (scores[i], -i))
    reasons = {
        m: f"{'in' if m in sets[best] else 'out'}: best set with it {_top(m, True, tried, sets):.2f}"
        + (f", without it {_top(m, False, tried, sets):.2f}" if count > 1 else "")
        for m in pool.models
    }
    return Chosen(recipes[best], reasons, scores[best], tried)


def _top(model: str, among: bool, tried: tuple[Tried, ...], sets: list[tuple[str, ...]]) -> float:
    return max(t.score for t, chosen in zip(tried, sets, strict=True) if (model in chosen) == among)
