"""The best single model: what every soup has to beat."""

from __future__ import annotations

from .way import Chosen, Pool, singles


def best(pool: Pool) -> Chosen:
    """The model with the highest held-out score."""
    tried = singles(pool)
    reasons = {t.name: f"out: {t.score:.2f} alone" for t in tried} | {tried[0].name: f"in: {tried[0].score:.2f} alone"}
    return Chosen(tried[0].recipe, reasons, tried[0].score, tuple(tried))
