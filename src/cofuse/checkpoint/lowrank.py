"""The nearest matrix of low rank: truncated singular value decomposition, exact where it is cheap, else randomised.

    D ~ U diag(s) V     the error is the tail of the singular values: ||D - U s V||_F^2 = sum of s_i^2 for i > rank

Sources: Eckart and Young 1936 (that nothing of this rank is nearer); Halko, Martinsson and Tropp, arXiv 0909.4061,
algorithm 4.4 (randomised subspace iteration), with as many iterations as still lower the error.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import CheckpointError
from .floats import as_floats, as_stored

Matrix = npt.NDArray[np.float32]

# An exact decomposition grows with the cube of the smaller side: 2048 x 2048 takes 24 s of a core; the randomised one
# of rank 16 takes 1 s, and leaves at most a thousandth more than the best.
EXACT = 256  # up to this smaller side it is exact
SPARE = 16  # columns beyond the rank
MOST = 24  # iterations at most
SETTLED = 2e-4  # stop when an iteration lowers the squared error by a smaller share
SEED = 0


@dataclass(frozen=True, slots=True)
class LowRank:
    """The leading part of a matrix: `u` [rows, rank], `s` [rank] falling, `vt` [rank, columns]."""

    u: Matrix
    s: Matrix
    vt: Matrix

    @property
    def rank(self) -> int:
        """Number of singular values."""
        return len(self.s)

    def first(self, rank: int) -> LowRank:
        """The part of a lower rank."""
        return LowRank(self.u[:, :rank], self.s[:rank], self.vt[:rank])


def leading(matrix: Matrix, rank: int) -> LowRank:
    """The leading singular values and vectors of a matrix.

    Args:
        matrix: [rows, columns], finite.
        rank: how many; at most the smaller side are given.

    Raises:
        CheckpointError: the decomposition does not converge.

    >>> found = leading(np.diag(np.array([1, 3, 2], np.float32)), 2)
    >>> found.s.tolist()
    [3.0, 2.0]
    """
    side = min(matrix.shape)
    rank = min(rank, side)
    try:
        if side <= EXACT or 4 * (rank + SPARE) >= side:
            u, s, vt = np.linalg.svd(matrix, full_matrices=False)
            return LowRank(u, s, vt).first(rank)
        return _randomised(matrix, rank)
    except np.linalg.LinAlgError as error:
        raise CheckpointError("the singular value decomposition failed", got=error) from None


def within(matrix: Matrix, error: float, rank: int) -> LowRank:
    """The leading part of the least rank that leaves at most a relative error, or of `rank` when that leaves more.

    Args:
        matrix: [rows, columns], finite.
        error: ||matrix - part||_F / ||matrix||_F at most.
        rank: the largest allowed.
    """
    total = _energy(matrix)
    rank = min(rank, *matrix.shape)
    tried = min(SPARE, rank)
    while True:
        found = leading(matrix, tried)
        left = total - np.cumsum(np.square(found.s, dtype=np.float64))
        enough = np.flatnonzero(left <= error * error * total)
        if enough.size:
            return found.first(int(enough[0]) + 1)
        if tried == rank:
            return found
        tried = min(2 * tried, rank)


@dataclass(frozen=True, slots=True)
class Factors:
    """A matrix as a product: `scale * b @ a`, `a` [rank, columns], `b` [rows, rank], with what they are stored as.

    `error` is ||matrix - scale b a||_F / ||matrix||_F.
    """

    a: Matrix
    b: Matrix
    error: float

    @property
    def rank(self) -> int:
        """Number of singular values."""
        return len(self.a)


def factored(
    matrix: Matrix,
    rank: int,
    code: str,
    *,
    error: float | None = None,
    scale: float = 1.0,
    even: bool = True,
    epsilon: float = 0.0,
) -> Factors:
    """The nearest product of a rank, rounded to the dtype that its factors are stored in.

    Args:
        matrix: [rows, columns], finite, not zero.
        rank: the largest allowed.
        code: dtype of the factors.
        error: take the least rank whose stored factors leave at most this; all of `rank` when None.
        scale: of the product.
        even: the singular values' roots on both factors; all on `a` when False.
        epsilon: drop singular values up to this.
    """
    most = min(rank, *matrix.shape)
    total = _energy(matrix)
    part = leading(matrix, most) if error is None else within(matrix, error, most)
    if epsilon > 0:
        part = part.first(max(1, int((part.s > epsilon).sum())))
    for _ in range(4):
        root = np.sqrt(part.s / np.float32(scale))[:, None]
        a, b = (root * part.vt, part.u * root.T) if even else (root * root * part.vt, part.u)
        a, b = (as_floats(as_stored(f, code), code, np.float32).reshape(f.shape).astype(np.float32) for f in (a, b))
        found = Factors(a, b, math.sqrt(_energy(matrix - np.float32(scale) * (b @ a)) / total))
        if error is None or found.error <= error or part.rank >= most or epsilon > 0:
            break
        part = leading(matrix, min(most, part.rank + max(1, part.rank // 8)))  # rounding took the rest
    return found


def _randomised(matrix: Matrix, rank: int) -> LowRank:
    total = left = _energy(matrix)
    z = np.random.Generator(np.random.Philox(SEED)).standard_normal((matrix.shape[1], rank + SPARE), np.float32)
    for _ in range(MOST):
        # Down and up again: (D' D)^k z turns towards the leading right vectors.
        q = np.linalg.qr(matrix @ z)[0]  # [rows, rank + spare]
        z, r = np.linalg.qr(matrix.T @ q)  # [columns, rank + spare], [rank + spare, rank + spare]
        u, s, vt = np.linalg.svd(r.T)  # q' D = r' z'
        before, left = left, total - _energy(s[:rank])
        if before - left <= SETTLED * left:
            break
    return LowRank(q @ u, s, vt @ z.T).first(rank)


def _energy(matrix: Matrix) -> float:
    return float(np.square(matrix, dtype=np.float64).sum())
