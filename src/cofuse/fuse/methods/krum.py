"""The models that lie nearest to the others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from ...errors import FuseError
from .gram import Matrix, combine, in_groups, square_distances
from .method import Array, Scan

# What `byzantine` and `m` stand for when nobody has said.
AS_MANY = -1


def krum(models: Iterable[Array], base: Array | None, *, byzantine: int = AS_MANY, known: Sequence[float]) -> Array:
    """The model with the least sum of squared distances to its n - f - 2 nearest neighbours, as it is.

        out = t_k,   k = argmin_i s_i,   s_i = sum over the n - f - 2 models j nearest to i of |t_i - t_j|^2

    over whole models: the same one in every tensor, the earlier of equals.

    Args:
        models: one block of each model.
        base: not used.
        byzantine: f, how many models may be bad, 2 f + 2 < n; -1 for as many as n allows, floor((n - 3) / 2).
        known: one for the model that is kept and zero for the others, from `krum_shares`.

    Returns:
        An array of that shape and dtype, that model's bits.

    Source: Machine learning with adversaries, Blanchard et al., NeurIPS 2017, sec. 4.

    >>> from .gram import at_hand
    >>> models = [np.array([x]) for x in (90.0, 1.0, 2.0, 2.5)]
    >>> krum(models, None, known=krum_shares(at_hand(models)))
    array([2.])
    """
    return combine(models, None, known)


def multi_krum(
    models: Iterable[Array], base: Array | None, *, byzantine: int = AS_MANY, m: int = AS_MANY, known: Sequence[float]
) -> Array:
    """The mean of the m models with the least Krum scores.

        out = (1/m) sum of the m models of least s_i          (s_i as in `krum`)

    Args:
        models: one block of each model, taken one at a time.
        base: not used.
        byzantine: f, as in `krum`.
        m: how many are averaged, 1 to n; -1 for n - f.
        known: 1/m for each model that is kept and zero for the others, from `multi_krum_shares`.

    Returns:
        An array of that shape and dtype. Scores are computed once, as in the paper; some implementations score again
        after each choice.

    Source: Machine learning with adversaries, Blanchard et al., NeurIPS 2017, sec. 4 and its experiments (m = n - f).

    >>> from .gram import at_hand
    >>> models = [np.array([x]) for x in (90.0, 1.0, 2.0, 3.0)]
    >>> multi_krum(models, None, m=3, known=multi_krum_shares(at_hand(models), m=3))
    array([2.])
    """
    return combine(models, None, known)


def krum_shares(scan: Scan, *, byzantine: int = AS_MANY) -> tuple[float, ...]:
    """The models' coefficients."""
    return multi_krum_shares(scan, byzantine=byzantine, m=1)


def check_counts(count: int, *, byzantine: int = AS_MANY, m: int = AS_MANY) -> None:
    """Refuse more bad models than a majority can outvote, and keeping more models than there are.

    Raises:
        FuseError: see above.
    """
    bad = (count - 3) // 2 if byzantine == AS_MANY else byzantine
    if not 0 <= 2 * bad < count - 2:
        raise FuseError(
            "too few models for so many bad ones",
            where="krum",
            got=f"{count} models, byzantine {bad}",
            expected="2 byzantine + 2 < models",
        )
    if m != AS_MANY and not 1 <= m <= count:
        raise FuseError("cannot keep so many models", where="multi_krum", got=f"m {m}", expected=f"1 to {count}")


def multi_krum_shares(scan: Scan, *, byzantine: int = AS_MANY, m: int = AS_MANY) -> tuple[float, ...]:
    """The models' coefficients."""
    distances = in_groups(square_distances(scan), "model")[""]
    count = len(distances)
    bad = (count - 3) // 2 if byzantine == AS_MANY else byzantine
    keep = count - bad if m == AS_MANY else m
    best = np.argsort(scores(distances, bad), kind="stable")[:keep]
    return tuple(1 / keep if i in best else 0.0 for i in range(count))


def scores(distances: Matrix, byzantine: int) -> Matrix:
    """Each model's sum of squared distances to its n - f - 2 nearest neighbours.

    >>> scores(np.array([[0.0, 1, 4], [1, 0, 1], [4, 1, 0]]), 0)
    array([1., 1., 1.])
    """
    # The nearest of all is the model itself, at 0.
    return np.asarray(np.sort(distances, axis=1)[:, : len(distances) - byzantine - 1].sum(axis=1))
