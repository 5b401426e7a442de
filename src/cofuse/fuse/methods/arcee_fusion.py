"""Arcee Fusion: take from the tuned model the entries whose change matters most."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from array_api_compat import array_namespace, is_numpy_array

from .method import Array, Place, Scan
from .quantile import order_statistics

EPSILON = 1e-8
# Divergences of rows at least so long are kept from the survey to the fuse: at most a 64th of the tensor.
LONG = 64


@dataclass(frozen=True, slots=True)
class Importance:
    """What is known of a tensor: the importance from which entries are taken, and its rows' divergences, by block."""

    threshold: float
    divergences: Mapping[int, Array]


def survey_importance(scan: Scan) -> Importance:
    """The threshold median + 1.5 (q3 - q1) of a tensor's importances; see `arcee_fusion`."""
    kept: dict[int, Array] = {}

    def importances(models: Iterable[Array], base: Array | None, place: Place) -> list[Array]:
        (tuned,) = models
        assert base is not None  # the plan refuses this method without a base
        tuned, base = by_last(tuned, place), by_last(base, place)
        diverging, weighing = _steps(base)
        kl = kept[place.index] if place.index in kept else diverging(tuned, base)
        if tuned.shape[-1] >= LONG:
            kept[place.index] = kl
        return [weighing(tuned, base, kl)]

    (quartiles,) = order_statistics(scan, importances, 1, lambda n: ((n - 1) // 4, (n - 1) // 2, 3 * (n - 1) // 4))
    q1, median, q3 = (np.float32(q) for q in quartiles)
    return Importance(float(median + np.float32(1.5) * (q3 - q1)), kept)


def arcee_fusion(models: Iterable[Array], base: Array | None, *, known: Importance, place: Place) -> Array:
    """The tuned model's value where the change is important, else the base's.

        importance = |t - base| KL(softmax(t) + 1e-8 || softmax(base) + 1e-8)       (softmax and KL over the last axis)
        out = t where importance >= median + 1.5 (q3 - q1), else base

    Args:
        models: the one tuned model's rows, [rows, elements].
        base: the same rows of the base.
        known: what the survey found of the whole tensor.
        place: where the block lies.

    Returns:
        An array of that shape and dtype.

    Source: mergekit's `arcee_fusion` (Arcee AI); there is no paper. Quantiles are the entries at floor(q (n - 1)) of
    the sorted importances, as there; for more than a million entries mergekit takes those of a million drawn with
    replacement, here they are exact. mergekit computes in the models' dtype: in bf16 the rounding of its softmax is
    larger than the divergence of a finetuned model from its base, so that its choice is then mostly noise; here the
    importances are float32. The divergence is taken in a form that does not cancel, and is never negative.

    >>> import numpy as np
    >>> base, tuned = np.zeros((1, 8)), np.array([[0, 0, 0, 0, 0, 0, 0.1, 2]])
    >>> arcee_fusion([tuned], base, known=Importance(0.5, {}), place=Place(shape=(1, 8)))
    array([[0., 0., 0., 0., 0., 0., 0., 2.]])
    """
    assert base is not None
    (tuned,) = models
    shape = base.shape
    tuned, base = by_last(tuned, place), by_last(base, place)
    kl = known.divergences.get(place.index)
    kl = divergence(tuned, base) if kl is None else kl
    xp = array_namespace(base)
    taken = xp.where(importance(tuned, base, kl) >= known.threshold, tuned, base)
    found: Array = xp.reshape(taken, shape)
    return found


def importance(tuned: Array, base: Array, kl: Array) -> Array:
    """|t - base| times each row's divergence, in float32: [rows, elements]."""
    xp = array_namespace(tuned)
    change = tuned - base
    found: Array = xp.astype(xp.abs(change), xp.float32, copy=False)
    found *= kl[:, None]
    return found


def divergence(tuned: Array, base: Array) -> Array:
    """The divergence of each row's softmax from the base's, [rows]; float32, computed in float64.

    KL = sum P log(P / Q), which is sum P log(P / Q) - P + Q, as P and Q have the same sum; no term of it is negative.
    """
    xp = array_namespace(tuned)
    p, q = (_softmax(xp.astype(x, xp.float64)) + EPSILON for x in (tuned, base))
    ratio = p / q
    # Near 1 the terms cancel: with u = P / Q - 1 they are Q u^2 (1/2 - u/6 + u^2/12 - ...).
    u = (p - q) / q
    near = u * u * (0.5 - u * (1 / 6 - u * (1 / 12 - u * (1 / 20 - u / 30))))
    term = xp.where(xp.abs(u) < 1e-2, near, ratio * xp.log(ratio) - u)
    found: Array = xp.astype(xp.sum(q * term, axis=-1), xp.float32)
    return found


def _steps(x: Array) -> tuple[Callable[[Array, Array], Array], Callable[[Array, Array, Array], Array]]:
    """The divergence and the importance: compiled ones where there are."""
    if is_numpy_array(x) and x.dtype == np.float32:
        from ..kernels import arcee_fusion as compiled

        return compiled.divergence, compiled.importance
    return divergence, importance


def by_last(x: Array, place: Place) -> Array:
    """The rows of a block as rows over the tensor's last axis."""
    xp = array_namespace(x)
    found: Array = xp.reshape(x, (-1, place.shape[-1] if place.shape else 1))
    return found


def _softmax(x: Array) -> Array:
    xp = array_namespace(x)
    shifted = xp.exp(x - xp.max(x, axis=-1, keepdims=True))
    found: Array = shifted / xp.sum(shifted, axis=-1, keepdims=True)
    return found
