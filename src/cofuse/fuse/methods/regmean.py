"""Linear layers merged by regression: the layer whose outputs come nearest to those of every model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import array_api_compat
import numpy as np

from ...errors import FuseError
from .method import Array, Place
from .spectral import one_thread


def regmean(
    models: Iterable[Array],
    base: Array | None,
    *,
    gram: Iterable[Array],
    weight: Sequence[float],
    alpha: float = 0.9,
    ridge: float = 1e-6,
    normalize_by: Literal["mean", "none"] = "none",
    place: Place | None = None,
) -> Array:
    """The linear layer whose outputs, on every model's inputs, are nearest to that model's.

        out = argmin_W sum_i w_i E |(W - W_i) x_i|^2 = (sum_i w_i W_i G_i) (sum_i w_i G_i)^-1,   G_i = E x_i x_i^T
        G_i <- alpha G_i + (1 - alpha) diag(G_i) + ridge mean(diag(G_i)) I

    Args:
        models: each model's whole matrix, [out, in], or [in, out] where the layer multiplies from the other side
            (Conv1D, GPT-2); taken one at a time.
        base: not used.
        gram: each model's inner products of the layer's inputs, [in, in], or [in, in, 1] for a layer [in, out].
        weight: w_i, one for each model; no unit.
        alpha: what is kept of the entries off the diagonal, in [0, 1]; no unit. 0 weighs each input for itself.
        ridge: added to the diagonal, as a share of its mean; no unit. It draws towards the models' mean the directions that
            no model's inputs have.
        normalize_by: `mean` divides each G by the mean of its diagonal, so that none owns a fuse by its size; `none`, as in
            the paper.
        place: names the tensor in errors.

    Returns:
        An array of that shape and dtype, solved in float64 for the differences from one of the models: models that agree
        give what they agree on, and one weight that is not zero gives that model.

    Raises:
        FuseError: a Gram matrix has a negative diagonal; or, where the ridge is too small to give it one, their sum has no
            inverse that its own rounding leaves a digit of.

    Source: Dataless knowledge fusion, arXiv 2212.09849, eq. 2 and sec. 3.3 (alpha; 0.9 there, 0.1 for T5). The ridge is
    ours: without it the sum has no inverse where alpha is 1 and there are fewer tokens than inputs.

    >>> import numpy as np
    >>> w, g = [np.array([[0.0, 0.0]]), np.array([[1.0, 1.0]])], [np.diag([3.0, 1.0]), np.diag([1.0, 3.0])]
    >>> regmean(w, None, gram=g, weight=[1, 1], ridge=0.0)
    array([[0.25, 0.75]])
    """
    origin: Any = None
    moved: Any = None
    total: Any = None
    turned = False
    rounding = 0.0
    for w, block, own in zip(weight, models, gram, strict=True):
        if not w:
            continue
        xp = array_api_compat.array_namespace(block)
        with one_thread(block):
            rounding = max(rounding, float(xp.finfo(own.dtype).eps))
            inner = w * _softened(xp.astype(own, xp.float64), alpha, ridge, normalize_by, place)
            if origin is None:
                origin, total, turned = block, inner, own.ndim == 3
                continue
            total += inner
            change = xp.astype(block, xp.float64) - xp.astype(origin, xp.float64)
            part = (change.T if turned else change) @ inner
            moved = part if moved is None else moved + part
    if moved is not None:
        with one_thread(origin):
            _check_inverse(total, ridge, rounding, place)
            try:
                found = xp.linalg.solve(total.T, moved.T)  # [in, out]
            except (ValueError, RuntimeError) as error:  # numpy's and torch's LinAlgError
                raise _no_inverse(error, place) from None
        origin = xp.astype(xp.astype(origin, xp.float64) + (found if turned else found.T), origin.dtype)
    result: Array = origin  # some weight is not zero: the plan has refused others
    return result


def gram_shapes(shape: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """The shapes of a matrix's Gram matrix: of what stands on its right, [in, in], or on its left, [in, in, 1].

    >>> gram_shapes((3, 2)), gram_shapes((3,))
    (((2, 2), (3, 3, 1)), ())
    """
    return ((shape[1], shape[1]), (shape[0], shape[0], 1)) if len(shape) == 2 else ()


def _check_inverse(total: Any, ridge: float, rounding: float, place: Place | None) -> None:
    """Refuse a sum of Gram matrices that is of less than full rank, up to what was rounded when they were stored.

    Elimination hardly ever says so: rounding leaves small pivots where there should be zeros, and what is divided by them
    is noise.
    """
    size = total.shape[0]
    least = size * float(np.finfo(np.float64).eps)
    if ridge > size * least:
        return  # the smallest eigenvalue is at least the ridge's share of the mean, the largest at most `size` means
    xp: Any = array_api_compat.array_namespace(total)
    values = xp.linalg.eigvalsh(total)  # rising
    if size and not float(values[0]) > max(least, rounding) * float(values[-1]):
        raise _no_inverse(f"eigenvalues from {float(values[0]):.3g} to {float(values[-1]):.3g}", place)


def _no_inverse(got: object, place: Place | None) -> FuseError:
    return FuseError(
        "the sum of the Gram matrices has no inverse",
        where=None if place is None else place.tensor,
        got=got,
        hint="a ridge above 0, or an alpha below 1",
    )


def _softened(own: Any, alpha: float, ridge: float, normalize_by: str, place: Place | None) -> Any:
    """A Gram matrix, its entries off the diagonal made smaller, with a ridge."""
    xp: Any = array_api_compat.array_namespace(own)
    matrix = xp.reshape(own, own.shape[:2])
    diagonal = xp.linalg.diagonal(matrix)
    size = diagonal.shape[0]
    if size and float(xp.min(diagonal)) < 0:
        raise FuseError(
            "a Gram matrix has a negative diagonal",
            where=None if place is None else place.tensor,
            got=float(xp.min(diagonal)),
            expected="sums of squares",
            hint="measure it again: cofuse gram",
        )
    mean = float(xp.sum(diagonal)) / size if size else 1.0
    softened = alpha * matrix
    places = xp.arange(size)
    softened[places, places] = diagonal + ridge * mean
    return softened / mean if normalize_by == "mean" and mean else softened
