"""The greedy soup: from the best model on, each that does not spoil it."""

from __future__ import annotations

from .way import Chosen, Pool, Tried, mean_among, singles


def greedy(pool: Pool) -> Chosen:
    """Sort by held-out score; add each model to the mean while the score does not fall.

    Never below the best single model on the held-out data, since that is where it starts.

    Source: Model soups, arXiv 2203.05482, recipe 1.
    """
    first, *rest = singles(pool)
    kept, best = [first.name], first
    tried = [first, *rest]
    reasons = {first.name: f"in: the best alone, {first.score:.2f}"}
    bar = pool.progress.bar("greedy soup", len(rest))
    for one in rest:
        recipe = mean_among(pool, {*kept, one.name})
        (score,) = pool.score([recipe])
        tried.append(Tried(f"with {one.name}", recipe, score))
        said = f"{one.score:.2f} alone, {score:.2f} with the {len(kept)} before it, {best.score:.2f} without"
        if score >= best.score:
            kept.append(one.name)
            best = tried[-1]
        reasons[one.name] = f"{'in' if kept[-1] == one.name else 'out'}: {said}"
        bar.advance(1)
    return Chosen(best.recipe, {m: reasons[m] for m in pool.models}, best.score, tuple(tried))
