"""What the methods that look at singular values share.

Singular values and vectors come from the eigenvalues of A^T A, taken in float64 over chunks of rows: the long side of a
matrix never enters the decomposition, and a float32 matrix keeps what its own rounding leaves of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
from array_api_compat import array_namespace, is_numpy_array

from ...checkpoint import ONE_BLAS_THREAD
from .method import Array

# Singular values below this share of the largest one cannot be told from rounding; their vectors are anybody's.
NOTHING = 1e-6
CHUNK = 1 << 19  # elements that are float64 at a time


def one_thread(x: Array) -> AbstractContextManager[None]:
    """The context in which linear algebra gives the same bytes on any number of threads."""
    return ONE_BLAS_THREAD if is_numpy_array(x) else nullcontext()


def is_matrix(shape: tuple[int, ...]) -> bool:
    """Whether a tensor is a matrix, or a convolution's kernel, which is one as [out, rest]; else it is a vector."""
    return len(shape) >= 2 and min(shape[0], int(np.prod(shape[1:], dtype=np.int64))) > 1


def as_tall(x: Array) -> Array:
    """A view of the tensor as a matrix [long, short]."""
    xp = array_namespace(x)
    matrix: Array = xp.reshape(x, (x.shape[0], -1))
    return matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T


def right_vectors(a: Array) -> tuple[Array, Array]:
    """Singular values, descending, and right singular vectors of a: [long, short].

    Returns:
        sigma: [short], float64; 0 where it is below `NOTHING` of the largest.
        v: [short, short], float64; a column for each.

    Source: A^T A = V Sigma^2 V^T. In float64 this resolves singular values down to about 1e-8 of the largest, where a
    float32 decomposition of A itself stops at 1e-7.

    >>> sigma, v = right_vectors(np.array([[3.0, 0.0], [0.0, 4.0], [0.0, 0.0]]))
    >>> sigma
    array([4., 3.])
    """
    xp = array_namespace(a)
    squares, v = xp.linalg.eigh(gram(a))
    sigma = xp.sqrt(xp.clip(xp.flip(squares, axis=(0,)), 0.0, None))
    sigma = sigma * (sigma > NOTHING * sigma[0])
    return sigma, xp.flip(v, axis=(1,))


def gram(a: Array) -> Array:
    """A^T A in float64: [short, short]."""
    xp = array_namespace(a)
    total: Array = xp.zeros_like(a[:1, :1], dtype=xp.float64)
    for start, stop in chunks(a):
        rows = xp.astype(a[start:stop], xp.float64)
        total = total + rows.T @ rows
    return total


def inverse_root(sigma: Array, v: Array) -> Array:
    """(A^T A)^(-1/2) on the directions that A has: V Sigma^-1 V^T, 0 where sigma is 0."""
    xp = array_namespace(v)
    inverse = (sigma > 0) / xp.where(sigma > 0, sigma, xp.ones_like(sigma))
    found: Array = (v * inverse) @ v.T
    return found


def times(a: Array, b: Array) -> None:
    """Do a <- a b in place, with the products in float64; b is square."""
    xp = array_namespace(a)
    for start, stop in chunks(a):
        a[start:stop] = xp.astype(xp.astype(a[start:stop], xp.float64) @ b, a.dtype)


def chunks(a: Array) -> Iterator[tuple[int, int]]:
    """Rows of a matrix, so many that a float64 copy of them is small."""
    step = max(1, CHUNK // max(1, a.shape[1]))
    for start in range(0, a.shape[0], step):
        yield start, min(start + step, a.shape[0])


def sum_of_changes(models: Iterable[Array], base: Array, weight: Sequence[float]) -> Array | None:
    """sum_i w_i (t_i - base); None where no model has a weight."""
    total: Array | None = None
    blocks = iter(models)
    for w in weight:
        change = next(blocks)
        if w:
            change -= base
            change *= w
            if total is None:
                total = change
            else:
                total += change
        del change  # before the next one is read
    return total
