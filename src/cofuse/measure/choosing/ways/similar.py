"""Those whose changes go together: no data is looked at, only weights, and the Fisher where there is one."""

from __future__ import annotations

from ....checkpoint import Checkpoint
from ....errors import FuseError
from ...compat.peers import distances
from .geometry import Geometry, geometry
from .way import Chosen, Pool, base_of, mean_of

OUTLIER = 3.0  # robust standard deviations of the logarithm of the norm
SAME = 0.98  # cosine of changes that are one change twice
AWAY = -0.1  # cosine of changes that undo each other
AGAINST = 0.45  # of a change that has the others' signs: half of it, where they have nothing to do with each other


def similar(pool: Pool) -> Chosen:
    """The mean of the models whose task vectors go together; see `left_out` for the rule."""
    return _chosen(pool, None)


def by_fisher(pool: Pool) -> Chosen:
    """The same in the base's Fisher metric: what counts is what the changes do to the output, not to the weights."""
    return _chosen(pool, pool.fisher)


def _chosen(pool: Pool, fisher: Checkpoint | None) -> Chosen:
    base = pool.checkpoints[base_of(pool)]
    models = {m: pool.checkpoints[m] for m in pool.models}
    found = geometry(base, models, fisher, progress=pool.progress)
    out = left_out(found)
    kept = [m for m in pool.models if m not in out]
    if not kept:
        raise FuseError(
            "no model goes together with the others",
            got="; ".join(f"{m}: {why}" for m, why in out.items()),
            hint="fuse none of them, or choose by held-out data: --way greedy",
        )
    reasons = {
        m: f"{'out: ' + out[m] if m in out else 'in'} ({_said(found, i, fisher is not None)})"
        for i, m in enumerate(pool.models)
    }
    return Chosen(mean_of(kept), reasons)


def left_out(found: Geometry) -> dict[str, str]:
    """The models that do not go with the others, and why.

    First those are left out whose change is none, or out of line with its peers' in size, since a sum that it is part of
    would be mostly it. Of the rest those that point away from the sum of the others' (cosine below -0.1), that mostly
    have the other sign than the others' (45 % or less agree), or that are another one's change again, which would count
    twice. Changes that have nothing to do with each other stay. Fewer than four have no size to be out of line with.

    >>> import numpy as np
    >>> left_out(Geometry(("a", "b"), np.eye(2), np.ones((2, 2)), np.ones(2)))
    {}
    """
    strange = distances([float(n) for n in found.norms])
    out: dict[str, str] = {}
    for i, model in enumerate(found.models):
        if found.norms[i] == 0:
            out[model] = "it is the base"
        elif strange[i] > OUTLIER:
            out[model] = "its change is out of line in size"
    among = [i for i, m in enumerate(found.models) if m not in out]
    for i in among:
        again = next((found.models[j] for j in among if j < i and _again(found, i, j, out)), None)
        if len(among) > 1 and found.together(i, among) < AWAY:
            out[found.models[i]] = "it points away from the others"
        elif found.agreement(i, among) < AGAINST:
            out[found.models[i]] = "most of it has the other sign than the others'"
        elif again is not None:
            out[found.models[i]] = f"nearly the change of {again}, which would count twice"
    return out


def _again(found: Geometry, i: int, j: int, out: dict[str, str]) -> bool:
    return found.models[j] not in out and found.cosine(i, j) > SAME


def _said(found: Geometry, i: int, predicted: bool) -> str:
    size = f"predicted KL {found.gram[i, i] / 2:.3g} nats" if predicted else f"norm {found.norms[i]:.4g}"
    return f"{size}, cosine with the others {found.together(i):.3f}, signs agree {100 * found.agreement(i):.0f} %"
