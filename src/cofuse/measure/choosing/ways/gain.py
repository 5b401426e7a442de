"""Those that are better than their base."""

from __future__ import annotations

from .way import Chosen, Pool, Tried, base_of, mean_of, singles


def gain(pool: Pool) -> Chosen:
    """The mean of the models whose held-out score is above the base's; the base itself where there is none.

    One evaluation a model and no search: with a probe the cheapest way that looks at data.
    """
    address = base_of(pool)
    (score,) = pool.score([mean_of([address])])
    base = Tried(address, mean_of([address]), score)
    tried = singles(pool)
    gains = {t.name: t.score - base.score for t in tried}
    kept = [m for m in pool.models if gains[m] > 0]
    reasons = {m: f"{'in' if gains[m] > 0 else 'out'}: gains {gains[m]:+.2f} over the base" for m in pool.models}
    if not kept:
        reasons[base.name] = "in: no model gains over it"
    return Chosen(mean_of(kept or [base.name]), reasons, None, (base, *tried))
