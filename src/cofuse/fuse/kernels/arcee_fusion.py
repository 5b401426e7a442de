"""Divergences of softmaxes row by row, and the choice by importance in one pass."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from ..methods.arcee_fusion import EPSILON, Importance, by_last
from ..methods.arcee_fusion import arcee_fusion as plain
from ..methods.arcee_fusion import divergence as plain_divergence
from ..methods.method import Array, Place
from .compiler import compiled

F4 = np.float32
NEAR = 0.1


def arcee_fusion(models: Iterable[Array], base: Array | None, *, known: Importance, place: Place) -> Array:
    """As `methods.arcee_fusion`."""
    assert base is not None
    (tuned,) = models
    if base.dtype != np.float32:
        return plain([tuned], base, known=known, place=place)
    t, b = by_last(tuned, place), by_last(base, place)
    kl = known.divergences.get(place.index)
    _take(t, b, divergence(t, b) if kl is None else kl, F4(known.threshold))
    return base


def divergence(tuned: npt.NDArray[np.float32], base: npt.NDArray[np.float32]) -> Array:
    """As `methods.arcee_fusion.divergence`, in float32; to about 1e-6 of it."""
    kl = np.zeros(len(base), F4)
    if base.size:
        far = _divergence(tuned, base, base.max(axis=1), kl) > NEAR
        if far.any():
            kl[far] = plain_divergence(tuned[far], base[far])
    return kl


@compiled
def importance(tuned, base, kl):  # type: ignore[no-untyped-def]
    """As `methods.arcee_fusion.importance`."""
    out = np.empty_like(base)
    for row in range(kl.size):
        for i in range(base.shape[1]):
            out[row, i] = abs(tuned[row, i] - base[row, i]) * kl[row]
    return out


@compiled
def _exp(x):  # type: ignore[no-untyped-def]
    """e^x for x <= 0; 1 ulp. Range reduction by ln 2 in two parts, then a polynomial (as in Cephes' expf)."""
    x = max(x, F4(-87.0))
    k = np.floor(x * F4(1.4426950408889634) + F4(0.5))
    r = x - k * F4(0.693359375) - k * F4(-2.12194440e-4)
    p = F4(1.9875691500e-4)
    p = p * r + F4(1.3981999507e-3)
    p = p * r + F4(8.3334519073e-3)
    p = p * r + F4(4.1665795894e-2)
    p = p * r + F4(1.6666665459e-1)
    p = p * r + F4(5.0000001201e-1)
    p = p * r * r + r + F4(1)
    return p * np.int32((np.int32(k) + np.int32(127)) << np.int32(23)).view(F4)


@compiled
def _divergence(tuned, base, top, kl):  # type: ignore[no-untyped-def]
    """Each row's divergence by series in d = t - base, and its largest |d|: beyond NEAR the series do not reach."""
    rows, n = base.shape
    q, w, scratch = np.empty(n, F4), np.empty(n, F4), np.empty(n, F4)
    far = np.empty(rows, F4)
    for row in range(rows):
        x, y, shift = tuned[row], base[row], top[row]
        for i in range(n):
            d = x[i] - y[i]
            # e^d - 1, which keeps its digits however small d is.
            w[i] = d * (F4(1) + d * (F4(1 / 2) + d * (F4(1 / 6) + d * (F4(1 / 24) + d * F4(1 / 120)))))
            scratch[i] = abs(d)
        far[row] = _largest(scratch)
        for i in range(n):
            q[i] = _exp(y[i] - shift)
            scratch[i] = q[i]
        scale = F4(1) / _sum(scratch)
        for i in range(n):
            q[i] *= scale
            scratch[i] = q[i] * w[i]
        mean = _sum(scratch)  # p / q = (1 + w) / (1 + mean)
        grown = F4(1) / (F4(1) + mean)
        for i in range(n):
            total = q[i] + F4(EPSILON)
            u = (w[i] - mean) * grown * q[i] / total
            series = F4(1 / 2) - u * (
                F4(1 / 6) - u * (F4(1 / 12) - u * (F4(1 / 20) - u * (F4(1 / 30) - u * F4(1 / 42))))
            )
            scratch[i] = total * u * u * series
        kl[row] = _sum(scratch)
    return far


@compiled
def _sum(x):  # type: ignore[no-untyped-def]
    """The sum, by folding the array onto itself: a compiler may do that with many at a time, and rounding stays small."""
    n = x.size
    while n > 1:
        half = (n + 1) // 2
        for i in range(n - half):
            x[i] += x[half + i]
        n = half
    return x[0]


@compiled
def _largest(x):  # type: ignore[no-untyped-def]
    n = x.size
    while n > 1:
        half = (n + 1) // 2
        for i in range(n - half):
            x[i] = max(x[i], x[half + i])
        n = half
    return x[0]


@compiled
def _take(tuned, base, kl, threshold):  # type: ignore[no-untyped-def]
    for row in range(kl.size):
        for i in range(base.shape[1]):
            b, t = base[row, i], tuned[row, i]
            base[row, i] = t if abs(t - b) * kl[row] >= threshold else b
