"""Which models to fuse: one file a way, one table.

Needs torch; imported by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ...document import nearest
from ...errors import FuseError
from .heldout import HeldOut, Judge, Mixture, held_out
from .ways.best import best
from .ways.exhaustive import exhaustive
from .ways.gain import gain
from .ways.greedy import greedy
from .ways.learned import learned
from .ways.search import search
from .ways.similar import by_fisher, similar
from .ways.uniform import uniform
from .ways.way import Chosen, Learning, Pool, Tried, Way, mean_of
from .ways.wise import wise

WAYS: Mapping[str, Way] = {
    "greedy": Way(greedy, "from the best on, each that does not lower the score"),
    "exhaustive": Way(exhaustive, "every set of at most 10"),
    "uniform": Way(uniform, "all of them"),
    "best": Way(best, "the best alone, which fuses nothing"),
    "learned": Way(learned, "mixing weights by gradient, per model, layer or tensor", ("tasks",)),
    "search": Way(search, "weights from a grid (two models) or drawn (more)"),
    "wise": Way(wise, "how far from the base towards their mean", ("base",)),
    "gain": Way(gain, "those better than the base", ("base",)),
    "similar": Way(similar, "those whose task vectors go together; no data", ("base",)),
    "fisher": Way(by_fisher, "the same where the base's Fisher says it matters; no data", ("base", "fisher")),
}

_HINTS = {
    "base": "say which: --base B",
    "fisher": "cofuse fisher B makes one; then --fisher F",
    "tasks": "give a suite",
}


def choose(way: str, pool: Pool) -> Chosen:
    """Choose by a row of `WAYS`; what was chosen without data is scored once.

    Raises:
        FuseError: there is no such way, something that it needs is missing, no model, or one stands twice; or what the
            way itself refuses.
    """
    if way not in WAYS:
        raise FuseError("no such way of choosing", got=way, hint=nearest(way, WAYS))
    if not pool.models:
        raise FuseError("no models to choose from")
    twice = sorted({m for m in (*pool.models, pool.base) if m and (*pool.models, pool.base).count(m) > 1})
    if twice:
        raise FuseError("a model stands twice", got=", ".join(twice), expected="each once, and the base besides")
    for need in WAYS[way].needs:
        if not pool.has(need):
            raise FuseError(f"{way} needs the {need}", hint=_HINTS[need])
    found = WAYS[way].run(pool)
    return found if found.score is not None else replace(found, score=pool.score([found.recipe])[0])


__all__ = [
    "WAYS",
    "Chosen",
    "HeldOut",
    "Judge",
    "Learning",
    "Mixture",
    "Pool",
    "Tried",
    "Way",
    "choose",
    "held_out",
    "mean_of",
]
