"""The Riemannian mean of directions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from .gram import RESOLVED, Matrix, combine, gram
from .method import Array, Scan


def karcher(
    models: Iterable[Array],
    base: Array | None,
    *,
    max_iter: int = 10,
    tol: float = 1e-5,
    known: Sequence[float],
) -> Array:
    """The direction with the least sum of squared angles to the models, at the mean of their lengths.

        m <- cos(|g|) m + sin(|g|) g / |g|,   g = (1/n) sum_i theta_i / sin(theta_i) (u_i - cos(theta_i) m)
        out = (1/N sum_i |t_i|) m,            u_i = t_i / |t_i|,   cos(theta_i) = <u_i, m>

    over flattened tensors, from the direction of the mean of the u_i, until |g| < tol or max_iter times.

    Args:
        models: one block of each model, taken one at a time.
        base: not used.
        max_iter: steps at most.
        tol: where to stop, in radians; models of a norm of at most tol have no direction, though they count in the mean
        length.
        known: the coefficients, from `karcher_shares`.

    Returns:
        An array of that shape and dtype. As mergekit's `karcher` (equal weights, its start, its stops): every vector
        that its steps visit is a combination of the u_i, so the steps are taken on the coefficients, in float64, with
        the inner products alone. A sum of directions shorter than 1e-4 counts as zero, where mergekit takes tol, and a
        model opposite to the mean to 1e-4 has no pull: float32 does not resolve less.

    Source: Karcher, Riemannian center of mass and mollifier smoothing, 1977; the iteration: arXiv 2603.04972.

    >>> from .gram import at_hand
    >>> a, b = np.array([2.0, 0.0]), np.array([0.0, 2.0])
    >>> karcher([a, b], None, known=karcher_shares(at_hand([a, b]))).round(4)
    array([1.4142, 1.4142])
    """
    return combine(models, None, known)


def karcher_shares(scan: Scan, *, max_iter: int = 10, tol: float = 1e-5) -> tuple[float, ...]:
    """The models' coefficients."""
    return tuple(map(float, _shares(gram(scan).square, max_iter, tol)))


def _shares(square: Matrix, max_iter: int, tol: float) -> Matrix:
    count = len(square)
    if count == 1:
        return np.ones(1)
    norms = np.sqrt(np.diag(square))
    valid = np.flatnonzero(norms > tol)
    if not len(valid):
        return np.zeros(count)
    # Vectors from here on are coefficients over the valid u_i, and `unit` is their Gram matrix.
    unit = np.clip(square[np.ix_(valid, valid)] / np.outer(norms[valid], norms[valid]), -1, 1)
    share = 1 / len(valid)

    def length(x: Matrix) -> float:
        return float(np.sqrt(max(0.0, x @ unit @ x)))

    mean = np.full(len(valid), share)
    mean = mean / length(mean) if length(mean) >= max(tol, RESOLVED) else np.eye(len(valid))[0]
    for _ in range(max_iter):
        dots = np.clip(unit @ mean, -1, 1)
        angles = np.arccos(dots)
        # One opposite to the mean pulls in every direction, so in none.
        far = (angles >= tol) & (np.pi - angles > RESOLVED)
        pull = np.where(far, share * angles / np.where(far, np.sin(angles), 1.0), 0.0)
        tangent = pull - (pull @ dots) * mean
        step = length(tangent)
        if step < tol:
            break
        mean = np.cos(step) * mean + np.sin(step) / step * tangent
        mean /= length(mean)
    found = np.zeros(count)
    found[valid] = norms.mean() * mean / norms[valid]
    return found
