"""TSV-Merge: the leading singular directions of each task vector, made orthogonal to those of the others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from array_api_compat import array_namespace

from .method import Array
from .spectral import as_tall, chunks, inverse_root, is_matrix, one_thread, right_vectors, sum_of_changes, times


def tsv(models: Iterable[Array], base: Array | None, *, weight: Sequence[float], scale: float = 1.0) -> Array:
    """The base plus the task vectors' leading singular components, decorrelated.

        t_i - base = U_i S_i V_i^T,    k = floor(rank / T),    U = [U_1[:, :k] ... U_T[:, :k]], S and V likewise
        out = base + lambda U_o S V_o^T,    U_o = U (U^T U)^(-1/2),    V_o = V (V^T V)^(-1/2)       (matrices)
        out = base + lambda mean_i w_i (t_i - base)                                                 (vectors)

    Args:
        models: each model's whole tensor, in its shape; a convolution's kernel counts as [out, rest].
        base: the base's.
        weight: w_i, a factor of each model's S_i; no unit. T is the number of models whose weight is not 0.
        scale: lambda.

    Returns:
        An array of that shape and dtype. A model alone comes back as it is.

    Source: Task singular vectors: reducing task interference in model merging, arXiv 2412.00081 (TSV-Merge): rank
    is min(out, rest); U_o is the orthogonal matrix nearest to U (Procrustes). The authors' code treats only
    tensors of two dimensions as matrices. Matrices with fewer rows or columns than there are models have no direction
    for each (k = 0): there the authors' code keeps the base, here they are averaged as vectors are.

    >>> import numpy as np
    >>> base, one, two = np.zeros((2, 2)), np.array([[3.0, 0.0], [0.0, 0.1]]), np.array([[0.1, 0.0], [0.0, 2.0]])
    >>> tsv([one, two], base, weight=[1, 1]).round(6) + 0.0
    array([[3., 0.],
           [0., 2.]])
    """
    assert base is not None  # the plan refuses this method without a base
    count = sum(w != 0 for w in weight)
    if not count:
        return base
    rank = min(as_tall(base).shape) if is_matrix(base.shape) else 0
    if count == 1 or rank < count:
        total = sum_of_changes(models, base, weight)
        assert total is not None
        total *= scale / count
        base += total
        return base
    with one_thread(base):
        return _merged(models, base, weight, scale, rank // count)


def _merged(models: Iterable[Array], base: Array, weight: Sequence[float], scale: float, k: int) -> Array:
    xp = array_namespace(base)
    tall = as_tall(base)
    lefts: list[Array] = []  # [long, k] each
    rights: list[Array] = []  # [short, k] each
    values: list[Array] = []
    blocks = iter(models)
    for w in weight:
        change = next(blocks)
        if w == 0:
            continue
        change -= base
        a = as_tall(change)
        sigma, v = right_vectors(a)
        sigma, v = sigma[:k], v[:, :k]
        over = v * ((sigma > 0) / xp.where(sigma > 0, sigma, xp.ones_like(sigma)))
        left = xp.zeros_like(a[:, :k])
        for start, stop in chunks(a):
            left[start:stop] = xp.astype(xp.astype(a[start:stop], xp.float64) @ over, a.dtype)
        lefts.append(left)
        rights.append(v)
        values.append(sigma * (w * scale))
        del change, a, left  # before the next one is read
    left, right, sigma = xp.concat(lefts, axis=1), xp.concat(rights, axis=1), xp.concat(values)
    lefts.clear()
    times(left, inverse_root(*right_vectors(left)))
    # U_o S V_o^T, a chunk of rows at a time.
    right = (right @ inverse_root(*right_vectors(right))) * sigma
    for start, stop in chunks(tall):
        tall[start:stop] += xp.astype(xp.astype(left[start:stop], xp.float64) @ right.T, base.dtype)
    return base
