"""Inner products of whole models, and the fuses that follow from them.

Spherical means, Model Stock, Krum, the geometric median and clipped norms are all linear combinations of the models
(and the base), whose coefficients depend on nothing but inner products. So each of them is a survey that sums these
over the blocks, a small pure function from them to coefficients, and one pass that combines.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, combinations
from threading import Lock
from typing import Any, NamedTuple, TypeAlias

import array_api_compat
import numpy as np
import numpy.typing as npt

from ...errors import FuseError
from .method import Array, Look, Place, QuickScan, Scan, T

Matrix: TypeAlias = npt.NDArray[np.float64]

# Sums run side by side, entry by entry, so that each is short and the order of additions is the same on every
# processor.
LANES = 4096
# A combination of unit vectors shorter than this is taken for zero: the inner products that its length is found from
# carry an error of about 1e-9 of the largest of them, and the root of that is what can be told from nothing.
RESOLVED = 1e-4
ROUNDING = 2.0**-53  # of a float64 near 1


def inner(x: Array, y: Array) -> float:
    """The inner product of two blocks.

        sum_j x_j y_j

    Products and sums of up to n/4096 of them are in the blocks' dtype, and those sums are added in float64: for float32
    blocks of the engine's size (64 in a lane) the error is at most 65 x 2^-24 of sum_j |x_j y_j|, and of random signs
    in practice (about 1e-8 of it). Blocks shorter than a lane, and those whose products overflow, are multiplied in
    float64.

    >>> inner(np.ones(3, np.float32), np.full(3, 2, np.float32))
    6.0
    """
    xp: Any = array_api_compat.array_namespace(x, y)
    x, y = x.reshape(-1), y.reshape(-1)
    whole = x.shape[0] - x.shape[0] % LANES
    found = 0.0
    if whole:
        with np.errstate(over="ignore", invalid="ignore"):
            lanes = xp.einsum("kl,kl->l", x[:whole].reshape(-1, LANES), y[:whole].reshape(-1, LANES))
        found = float(xp.sum(lanes, dtype=xp.float64))
        if not np.isfinite(found):
            found = _wide(x[:whole], y[:whole], xp)
    return found if whole == x.shape[0] else found + _wide(x[whole:], y[whole:], xp)


def _wide(x: Array, y: Array, xp: Any) -> float:
    return float(xp.sum(xp.astype(x, xp.float64) * xp.astype(y, xp.float64)))


class Gram(NamedTuple):
    """Inner products of vectors, [models, models]; whether a base was subtracted from them; their tensor."""

    square: Matrix
    based: bool
    tensor: str


def gram(scan: Scan, *, with_base: bool = False) -> Gram:
    """The inner products of the models, or of their task vectors where there is a base.

        G_ij = <v_i, v_j>,  v_i = t_i, or t_i - base

    Task vectors are subtracted before they are multiplied, so those of models that hardly differ from their base keep
    their digits.

    Args:
        scan: over the blocks.
        with_base: the base is a vector like the others, the first one, and subtracted from none.

    Returns:
        The matrix in float64; [1 + models, 1 + models] with the base. The order of summation is fixed.

    Raises:
        FuseError: a norm is too large for float64.

    >>> gram(at_hand([np.array([3.0, 4.0]), np.array([1.0, 0.0])])).square.tolist()
    [[25.0, 3.0], [3.0, 1.0]]
    """

    def look(models: Iterable[Array], base: Array | None, place: Place) -> tuple[bool, str, list[float]]:
        products: list[float] = []
        vectors: list[Array] = []
        for x in chain([base], models) if with_base and base is not None else deltas(models, base):
            vectors.append(x)
            products += [inner(x, y) for y in vectors]
        return base is not None and not with_base, place.tensor, products

    quick = scan.products(with_base=with_base) if isinstance(scan, QuickScan) else None
    found = scan(look) if quick is None else quick
    (based, tensor, _), *_ = found
    total = np.sum(np.asarray([products for _, _, products in found], np.float64), axis=0)
    if not np.isfinite(total).all():
        raise FuseError("norms are too large", where=tensor, hint="the values are far from those of any model")
    return Gram(_symmetric(total, diagonal=True), based, tensor)


def deltas(models: Iterable[Array], base: Array | None) -> Iterator[Array]:
    """The task vectors, each in its model's memory; the models themselves where there is no base."""
    blocks = iter(models)
    while (x := next(blocks, None)) is not None:
        if base is not None:
            x -= base
        yield x


def square_distances(scan: Scan) -> dict[str, Matrix]:
    """The squares of the distances between the models, by tensor.

        D_ij = ||t_i - t_j||^2

    Each pair is subtracted before it is squared: a model far off makes the distances between the others no less exact,
    as it would were they found from inner products about a common point.

    Returns:
        For each tensor, in the order of the plan, [models, models] in float64; what the tensors' entries sum to is the
        whole models' distances.

    >>> square_distances(at_hand([np.array([3.0, 4.0]), np.array([0.0, 0.0])]))[""].tolist()
    [[0.0, 25.0], [25.0, 0.0]]
    """

    def look(models: Iterable[Array], base: Array | None, place: Place) -> tuple[str, list[float]]:
        found: list[float] = []
        vectors: list[Array] = []
        for x in models:
            for y in vectors:
                difference = x - y
                found.append(inner(difference, difference))
            vectors.append(x)
        return place.tensor, found

    return {name: _symmetric(row, diagonal=False) for name, row in by_tensor(scan(look)).items()}


def products_about(scan: Scan, origin: Mapping[str, int]) -> dict[str, Matrix]:
    """Inner products of the models about one of them, by tensor.

        G_ij = <t_i - t_k, t_j - t_k>

    Args:
        scan: over the blocks.
        origin: k, by tensor, or under "" for all.

    >>> products_about(at_hand([np.array([3.0, 4.0]), np.array([0.0, 1.0])]), {"": 1})[""].tolist()
    [[18.0, 0.0], [0.0, 0.0]]
    """

    def look(models: Iterable[Array], base: Array | None, place: Place) -> tuple[str, list[float]]:
        held = list(models)
        vectors = list(deltas(held, held[of_group(origin, place)].copy()))
        return place.tensor, [inner(x, y) for i, x in enumerate(vectors) for y in vectors[: i + 1]]

    return {name: _symmetric(row, diagonal=True) for name, row in by_tensor(scan(look)).items()}


def square_norms(scan: Scan) -> dict[str, Matrix]:
    """The squares of the norms of the task vectors, by tensor; holds one model at a time.

        n_i = ||t_i - base||^2

    Returns:
        For each tensor, in the order of the plan, [models] in float64.
    """

    def look(models: Iterable[Array], base: Array | None, place: Place) -> tuple[str, list[float]]:
        return place.tensor, [inner(x, x) for x in deltas(models, base)]

    return by_tensor(scan(look))


def by_tensor(found: Sequence[tuple[str, list[float]]]) -> dict[str, Matrix]:
    """What was found in the blocks of each tensor, summed in their order."""
    blocks: dict[str, list[list[float]]] = {}
    for name, row in found:
        blocks.setdefault(name, []).append(row)
    return {name: np.sum(np.asarray(rows, np.float64), axis=0) for name, rows in blocks.items()}


def in_groups(tensors: Mapping[str, Matrix], scope: str) -> Mapping[str, Matrix]:
    """What each tensor has, by name (scope `tensor`); or their sum under the name "" (scope `model`)."""
    return tensors if scope == "tensor" else {"": np.sum(list(tensors.values()), axis=0)}


def of_group(known: Mapping[str, T], place: Place) -> T:
    """What is known of the group that a block belongs to."""
    return known[""] if "" in known else known[place.tensor]


def combine(models: Iterable[Array], base: Array | None, coefficients: Sequence[float]) -> Array:
    """A linear combination of the models, and of the base where there is one.

        out = c_0 base + sum_i c_i t_i

    Summed as differences from the first one of weight (as in `linear`), so what the vectors agree on is kept. What
    comes before it with a coefficient of less than a sixteenth of the largest is added as it is: a model that a robust
    method has all but left out may lie so far off that the others' differences from it would be lost in rounding.

    Args:
        models: one block of each, taken one at a time; none after the last that counts.
        base: a block, or None.
        coefficients: c_0 (where there is a base), c_1, c_2, ...

    >>> combine([np.array([3.0])], np.array([1.0]), [0.5, 0.5])
    array([2.])
    """
    k, last, whole = terms(coefficients)
    blocks = iter(models if base is None else chain([base], models))
    pivot: Array | None = None
    total: Array | None = None
    for i, c in enumerate(coefficients[: last + 1]):
        x = next(blocks)
        if i == k:
            pivot = x
        elif c:
            if pivot is not None:
                x -= pivot
            x *= c
            if total is None:
                total = x
            else:
                total += x
        del x  # before the next one is read
    assert pivot is not None  # some coefficient is the largest
    if whole != 1.0:
        pivot *= whole
    if total is not None:
        pivot += total
    return pivot


def terms(coefficients: Sequence[float]) -> tuple[int, int, float]:
    """How `combine` sums: which vector is the pivot, which is the last that counts, and the pivot's own coefficient.

    >>> terms([0.25, 0.75, 0.0])
    (0, 1, 1.0)
    """
    heavy = max(map(abs, coefficients)) / 16
    k = next(i for i, c in enumerate(coefficients) if abs(c) >= heavy)
    last = max(i for i, c in enumerate(coefficients) if c or i == k)
    whole = math.fsum(coefficients[k:])
    # Shares of one whole, each rounded: what all models agree on must come out as it is.
    return k, last, 1.0 if abs(whole - 1) <= len(coefficients) * ROUNDING else whole


def mixed(count: int, *, known: Any, place: Place | None = None, **parameters: object) -> Sequence[float] | None:
    """The coefficients that a survey has found; None where it has found something else. See `Method.mix`."""
    found = of_group(known, place) if isinstance(known, Mapping) and place is not None else known
    return found if isinstance(found, tuple) else None


def about_base(shares: Iterable[float]) -> tuple[float, ...]:
    """The coefficients of base + sum_i c_i (t_i - base): the base's, then the models'.

    >>> about_base([0.25, 0.25])
    (0.5, 0.25, 0.25)
    """
    found = tuple(map(float, shares))
    return (1.0 - math.fsum(found), *found)


def cosine(product: float, square_x: float, square_y: float) -> float:
    """The cosine of two vectors of some length from their inner products, in [-1, 1]."""
    return min(1.0, max(-1.0, product / float(np.sqrt(square_x) * np.sqrt(square_y))))


def sum_in_order(scan: Scan, look: Look[Array]) -> Any:
    """The sum over a tensor's blocks of what `look` gives, added in the order of the blocks, without keeping them all.

    None where there are no blocks.
    """
    lock, waiting = Lock(), dict[int, Array]()
    done: list[Any] = [0, None]

    def add(models: Iterable[Array], base: Array | None, place: Place) -> None:
        found = look(models, base, place)
        with lock:
            waiting[place.index] = found
            while done[0] in waiting:
                next_one = waiting.pop(done[0])
                done[:] = done[0] + 1, next_one if done[1] is None else done[1] + next_one

    scan(add)
    return done[1]


def at_hand(models: Sequence[Array], base: Array | None = None, place: Place | None = None) -> Scan:
    """A scan over a single block that is there already, for examples and tests."""

    def scan(look: Callable[[Iterable[Array], Array | None, Place], Any]) -> list[Any]:
        return [look([m.copy() for m in models], None if base is None else base.copy(), place or Place())]

    return scan


def _symmetric(lower: Matrix, *, diagonal: bool) -> Matrix:
    count = round((np.sqrt(8 * len(lower) + 1) + (-1 if diagonal else 1)) / 2)
    matrix = np.zeros((count, count))
    matrix[np.tril_indices(count, 0 if diagonal else -1)] = lower
    return np.asarray(matrix + np.tril(matrix, -1).T)


def pairs(count: int) -> list[tuple[int, int]]:
    """Every pair of models once."""
    return list(combinations(range(count), 2))
