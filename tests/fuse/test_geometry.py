"""Methods of angles and lengths, beside twins that do on whole float64 vectors what the formulas say."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from cofuse.checkpoint import Memory
from cofuse.errors import FuseError
from cofuse.fuse import fuse
from cofuse.fuse import fused as fused_module
from cofuse.fuse.methods.gram import at_hand, combine, gram, inner, square_distances, sum_in_order
from cofuse.fuse.methods.method import Place

Vector = npt.NDArray[np.float64]
SHAPES = [(33, 65), (200,), (6, 4, 3, 3), (), (7, 1), (1, 9), (3, 5000)]
# How far the models are from the base, beside what they share; "copies" are all alike.
SPREADS = {"far": 2.0, "near": 1e-2, "nearer": 1e-4, "copies": 0.0}


def draw(shape: tuple[int, ...], spread: float, count: int) -> tuple[Vector, list[Vector]]:
    """A base and models in float64 that float32 holds exactly."""
    rng = np.random.default_rng(len(shape) + sum(shape))
    base, shared = rng.standard_normal(shape), rng.standard_normal(shape)
    models = [base + spread * (0.7 * shared + rng.standard_normal(shape)) for _ in range(count)]
    held = [np.asarray(np.float32(x), np.float64) for x in (base, *models)]
    return held[0], held[1:]


def fused(method: str, base: Vector | None, models: Sequence[Vector], dtype: torch.dtype, **settings: Any) -> Vector:
    held = [Memory({"x": torch.tensor(m).to(dtype)}) for m in models]
    own = None if base is None else Memory({"x": torch.tensor(base).to(dtype)})
    return fuse(method, held, base=own, **settings).read("x").double().numpy()


def agree(
    twin: Callable[..., Vector],
    method: str,
    count: int,
    *,
    with_base: bool,
    float32: float = 3e-7,
    float64: float = 1e-12,
    **settings: Any,
) -> None:
    """Both precisions beside the twin, on every shape and spread, within a share of the norm."""
    for shape in SHAPES:
        for spread in SPREADS.values():
            base, models = draw(shape, spread, count)
            own = base if with_base else None
            given = {("weight" if k == "weights" else k): v for k, v in settings.items()}
            expected = twin(own, models, **given)
            size = float(np.linalg.norm(expected)) + 1e-30
            for dtype, allowed in ((torch.float32, float32), (torch.float64, float64)):
                got = fused(method, own, models, dtype, **settings)
                off = float(np.linalg.norm(got - expected)) / size
                assert off <= allowed, (shape, spread, dtype, off)


def norm(x: Vector) -> float:
    return float(np.linalg.norm(x))


# Inner products


@pytest.mark.parametrize("size", [0, 1, 2047, 2048, 5000, 128 * 1024])
@pytest.mark.parametrize("kind", ["signs", "positive", "mixed"])
def test_an_inner_product_is_as_exact_as_it_says(size: int, kind: str) -> None:
    rng = np.random.default_rng(size)
    x, y = (rng.standard_normal(size).astype(np.float32) for _ in range(2))
    if kind == "positive":
        x, y = np.abs(x), np.abs(y)
    if kind == "mixed":
        x *= np.exp(rng.uniform(-20, 20, size)).astype(np.float32)
    exact = math.fsum(x.astype(np.float64) * y.astype(np.float64))
    total = math.fsum(np.abs(x.astype(np.float64) * y))
    assert abs(inner(x, y) - exact) <= 65 * 2.0**-24 * total
    assert abs(inner(x, y) - exact) <= 1e-7 * total  # what it is in practice, and what the methods count on
    assert inner(x.astype(np.float64), y.astype(np.float64)) == pytest.approx(exact, abs=65 * 2.0**-53 * total)


def test_an_inner_product_survives_values_whose_squares_overflow() -> None:
    for size in (3, 5000):
        assert inner(np.full(size, 1e30, np.float32), np.full(size, 1e30, np.float32)) == pytest.approx(size * 1e60)


def test_products_of_small_task_vectors_keep_their_digits() -> None:
    base, models = draw((64, 1000), 1e-3, 3)
    deltas = np.stack([(m - base).ravel() for m in models])
    narrow = [m.astype(np.float32).ravel() for m in models]
    got = gram(at_hand(narrow, base.astype(np.float32).ravel())).square
    exact = deltas @ deltas.T
    assert np.abs(got - exact).max() <= 1e-7 * np.abs(exact).max()
    distances = square_distances(at_hand(narrow))[""]
    assert np.allclose(distances, [[norm(a - b) ** 2 for b in deltas] for a in deltas], rtol=1e-7, atol=0)


def test_a_model_far_off_makes_the_other_distances_no_less_exact() -> None:
    _, models = draw((1000,), 1.0, 3)
    far = np.full(1000, 1e25)
    got = square_distances(at_hand([x.astype(np.float32) for x in (far, *models)]))[""]
    assert got[1, 2] == pytest.approx(norm(models[0] - models[1]) ** 2, rel=1e-6)
    assert got[0, 1] == pytest.approx(1000 * 1e50, rel=1e-6)


def test_sums_follow_the_order_of_the_blocks() -> None:
    def scan(look: Any) -> list[Any]:
        return [look([], None, Place(index=i)) for i in (2, 0, 3, 1)]

    class Noted:
        def __init__(self, index: int) -> None:
            self.indices = [index]

        def __add__(self, other: Noted) -> Noted:
            self.indices += other.indices
            return self

    def look(models: Any, base: Any, place: Place) -> Any:
        return Noted(place.index)

    assert sum_in_order(scan, look).indices == [0, 1, 2, 3]
    assert sum_in_order(lambda look: [], look) is None


def test_a_combination_reads_no_model_after_the_last_that_counts() -> None:
    def blocks() -> Any:
        yield np.ones(2)
        yield np.full(2, 3.0)
        raise AssertionError("nobody needs this one")

    assert combine(blocks(), None, [0.0, 1.0, 0.0]).tolist() == [3.0, 3.0]


# slerp


def slerp_twin(base: Vector | None, models: Sequence[Vector], t: float) -> Vector:
    assert base is not None
    (model,) = models
    norms = [norm(x) if norm(x) > 1e-8 else 1.0 for x in (base, model)]
    dot = float(np.sum(base / norms[0] * (model / norms[1])).clip(-1, 1))
    if abs(dot) > 0.9995:
        return (1 - t) * base + t * model
    theta = math.acos(dot)
    return (math.sin((1 - t) * theta) * base + math.sin(t * theta) * model) / math.sin(theta)


@pytest.mark.parametrize("t", [0.0, 0.3, 0.5, 1.0, 1.2])
def test_slerp(t: float) -> None:
    agree(slerp_twin, "slerp", 1, with_base=True, t=t)


def test_slerp_keeps_the_length_on_the_arc() -> None:
    base, (model,) = draw((100,), 2.0, 1)
    model *= norm(base) / norm(model)
    for t in (0.1, 0.5, 0.9):
        assert norm(fused("slerp", base, [model], torch.float64, t=t)) == pytest.approx(norm(base))


def test_slerp_of_opposed_and_of_empty_directions_is_finite() -> None:
    base = np.array([1.0, 2.0, -3.0])
    assert fused("slerp", base, [-base], torch.float32, t=0.25) == pytest.approx(0.5 * base)
    # As mergekit: a vector without a length is perpendicular to all.
    got = fused("slerp", np.zeros(3), [base], torch.float32, t=0.5)
    assert got == pytest.approx(math.sin(math.pi / 4) * base)
    assert fused("slerp", np.zeros(3), [np.zeros(3)], torch.float32, t=0.5).tolist() == [0, 0, 0]


def test_slerp_changes_from_arc_to_line_at_the_threshold() -> None:
    for cosine, line in ((0.9996, True), (0.9994, False)):
        base, model = np.array([1.0, 0.0]), np.array([cosine, math.sqrt(1 - cosine**2)])
        got = fused("slerp", base, [model], torch.float64, t=0.5)
        assert (abs(norm(got) - 1) > 1e-5) == line


# nuslerp


def nuslerp_twin(
    base: Vector | None,
    models: Sequence[Vector],
    weight: Sequence[float],
    nuslerp_flatten: bool = True,
    nuslerp_row_wise: bool = False,
) -> Vector:
    first, second = models if base is None else [m - base for m in models]
    t = 0.5 if abs(sum(weight)) < 1e-6 else weight[1] / sum(weight)
    out = np.empty(first.shape)
    # Each vector by itself, in a loop.
    axis = 0 if nuslerp_row_wise else -1
    if nuslerp_flatten or first.ndim == 0:
        return one_arc(first, second, t) + (0 if base is None else base)
    a, b, o = (np.moveaxis(x, axis, -1) for x in (first, second, out))
    for at in np.ndindex(a.shape[:-1]):
        o[at] = one_arc(a[at], b[at], t)
    return out + (0 if base is None else base)


def one_arc(a: Vector, b: Vector, t: float) -> Vector:
    cosine = float(np.sum(a / max(norm(a), 1e-7) * (b / max(norm(b), 1e-7))).clip(-1, 1))
    if 1 - cosine**2 <= 1e-6:
        return np.asarray((1 - t) * a + t * b)
    theta = math.acos(cosine)
    return np.asarray((math.sin((1 - t) * theta) * a + math.sin(t * theta) * b) / math.sin(theta))


@pytest.mark.parametrize("with_base", [False, True])
@pytest.mark.parametrize("way", [(True, False), (True, True), (False, False), (False, True)])
def test_nuslerp(with_base: bool, way: tuple[bool, bool], monkeypatch: pytest.MonkeyPatch) -> None:
    flatten, row_wise = way
    monkeypatch.setattr(fused_module, "BLOCK", 100)  # so that columns are summed over many blocks
    # Vectors of a few entries may be as good as opposed, and then the arc magnifies float32's rounding of the models.
    agree(
        nuslerp_twin,
        "nuslerp",
        2,
        with_base=with_base,
        float32=3e-7 if flatten else 2e-5,
        float64=1e-12 if flatten else 1e-10,
        weights=[0.3, 0.7],
        nuslerp_flatten=flatten,
        nuslerp_row_wise=row_wise,
    )


def test_nuslerp_is_slerp_and_takes_the_middle_when_the_weights_cancel() -> None:
    base, (model,) = draw((50,), 2.0, 1)
    expected = fused("slerp", base, [model], torch.float64, t=0.25)
    assert fused("nuslerp", None, [base, model], torch.float64, weights=[3, 1]) == pytest.approx(expected)
    middle = fused("slerp", base, [model], torch.float64, t=0.5)
    assert fused("nuslerp", None, [base, model], torch.float64, weights=[1, -1]) == pytest.approx(middle)


def test_nuslerp_of_opposed_vectors_is_a_line_and_no_noise() -> None:
    _, (model,) = draw((5000,), 2.0, 1)
    opposed = -1.5 * model
    for weights in ([1, 1], [3, 1]):
        t = weights[1] / sum(weights)
        expected = (1 - t) * model + t * opposed
        got = fused("nuslerp", None, [model, opposed], torch.float32, weights=weights)
        assert norm(got - expected) <= 1e-6 * norm(model)


# multislerp


def multislerp_twin(
    base: Vector | None, models: Sequence[Vector], weight: Sequence[float], normalize_weights: bool = True
) -> Vector:
    """With the steps in the tangent space that add up to nothing."""
    vectors = list(models) if base is None else [m - base for m in models]
    w = np.asarray(weight) / (sum(weight) if normalize_weights else 1)
    units = [v / (norm(v) + 1e-8) for v in vectors]
    mean = np.sum([a * u for a, u in zip(w, units, strict=True)], axis=0)
    mean = mean / norm(mean)
    tangent = np.sum([a * (u - np.sum(u * mean) * mean) for a, u in zip(w, units, strict=True)], axis=0)
    length = norm(tangent) + 1e-8
    point = mean * math.cos(length) + tangent * math.sin(length) / length
    point = point * sum(a * norm(v) for a, v in zip(w, vectors, strict=True))
    return point if base is None else point + base


@pytest.mark.parametrize("normalize", [True, False])
def test_multislerp(normalize: bool) -> None:
    settings = {"weights": [0.5, 1.0, 0.3], "normalize_weights": normalize}
    agree(multislerp_twin, "multislerp", 3, with_base=False, float32=1e-6, **settings)


def test_multislerp_about_a_base() -> None:
    for shape in SHAPES:
        base, models = draw(shape, 1e-2, 3)
        got = fused("multislerp", base, models, torch.float32, weights=[0.5, 1.0, 0.3])
        expected = multislerp_twin(base, models, [0.5, 1.0, 0.3])
        assert norm(got - expected) <= 2e-7 * norm(expected)


def test_multislerp_of_one_model_is_that_model() -> None:
    base, (model,) = draw((50,), 2.0, 1)
    assert (fused("multislerp", base, [model], torch.float32, weights=[0.3]) == model).all()


def test_multislerp_of_two_that_cancel_is_a_line_and_of_more_an_error() -> None:
    _, (model,) = draw((5000,), 2.0, 1)
    got = fused("multislerp", None, [model, -1.5 * model], torch.float32, weights=[1, 1])
    assert norm(got + 0.25 * model) <= 1e-6 * norm(model)
    with pytest.raises(FuseError, match="directions cancel"):
        fused("multislerp", None, [model, -1.5 * model, 0 * model], torch.float32, weights=[1, 1, 1])
    with pytest.raises(FuseError, match="sum to zero"):
        fused("multislerp", None, [model, model + 1], torch.float32, weights=[1, -1])


# karcher


def karcher_twin(base: Vector | None, models: Sequence[Vector], max_iter: int = 10, tol: float = 1e-5) -> Vector:
    norms = [norm(m) for m in models]
    units = [m / n for m, n in zip(models, norms, strict=True) if n > tol]
    if not units:
        return np.zeros(models[0].shape)
    mean = np.mean(units, axis=0)
    mean = units[0] if norm(mean) < tol else mean / norm(mean)
    for _ in range(max_iter):
        tangent = np.zeros(mean.shape)
        for u in units:
            dot = float(np.sum(mean * u).clip(-1, 1))
            theta = math.acos(dot)
            if theta >= tol:
                tangent = tangent + theta / math.sin(theta) * (u - dot * mean) / len(units)
        step = norm(tangent)
        if step < tol:
            break
        mean = math.cos(step) * mean + math.sin(step) * tangent / step
        mean = mean / norm(mean)
    return np.asarray(np.mean(norms) * mean)


@pytest.mark.parametrize("settings", [{}, {"max_iter": 1}, {"max_iter": 50, "tol": 1e-9}])
def test_karcher(settings: dict[str, Any]) -> None:
    agree(karcher_twin, "karcher", 4, with_base=False, float64=1e-11, **settings)


def test_karcher_balances_the_angles() -> None:
    """At the mean the tangents to the models add up to nothing: what makes it the least sum of squared angles."""
    _, models = draw((100,), 2.0, 5)
    got = fused("karcher", None, models, torch.float64, max_iter=100, tol=1e-13)
    mean = got / norm(got)
    total = np.zeros(100)
    for model in models:
        dot = float(mean @ model / norm(model))
        total += math.acos(dot) / math.sqrt(1 - dot**2) * (model / norm(model) - dot * mean)
    assert norm(total) < 1e-10
    assert norm(got) == pytest.approx(np.mean([norm(m) for m in models]))


def test_karcher_where_there_is_no_direction() -> None:
    _, (model,) = draw((5000,), 2.0, 1)
    zero = 0 * model
    assert (fused("karcher", None, [zero, zero], torch.float32) == 0).all()
    half = fused("karcher", None, [model, zero], torch.float32)  # its length counts, as in mergekit
    assert norm(half - model / 2) <= 1e-6 * norm(model)
    opposed = fused("karcher", None, [model, -1.5 * model], torch.float32)
    assert norm(opposed - 1.25 * model) <= 1e-6 * norm(model)
    assert (fused("karcher", None, [model], torch.float32) == model).all()


# model_stock


def model_stock_twin(base: Vector | None, models: Sequence[Vector], filter_wise: bool = False) -> Vector:
    assert base is not None
    shape = base.shape
    rows = (lambda x: x.reshape(-1, shape[-1] if shape else 1)) if filter_wise else (lambda x: x.reshape(1, -1))
    own, others = rows(base), [rows(m) for m in models]
    out = np.empty(own.shape)
    for r in range(len(own)):
        deltas = [m[r] - own[r] for m in others]
        cosines = [
            np.clip(deltas[i] @ deltas[j] / max(norm(deltas[i]) * norm(deltas[j]), 1e-6), -1, 1)
            for i in range(len(models))
            for j in range(i)
        ]
        c, n = float(np.mean(cosines)), len(models)
        below = 1 + (n - 1) * c
        t = 0.0 if abs(below) < 1e-6 else n * c / below
        out[r] = t * np.mean([m[r] for m in others], axis=0) + (1 - t) * own[r]
    return out.reshape(shape)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_model_stock(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_module, "BLOCK", 1000)
    agree(model_stock_twin, "model_stock", count, with_base=True, float32=1e-6)


def test_model_stock_filter_wise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_module, "BLOCK", 100)
    # Where a filter's denominator nearly vanishes, its t magnifies the rounding of the task vectors to float32.
    agree(model_stock_twin, "model_stock", 3, with_base=True, float32=1e-4, float64=1e-8, filter_wise=True)


def test_model_stock_between_orthogonal_and_equal_task_vectors() -> None:
    base = np.zeros(4)
    apart = [np.array([1.0, 0, 0, 0]), np.array([0, 1.0, 0, 0])]
    assert fused("model_stock", base, apart, torch.float64).tolist() == [0, 0, 0, 0]  # c = 0: nothing is shared
    assert fused("model_stock", base, [apart[0]] * 3, torch.float64) == pytest.approx(apart[0])
    # Opposed: 1 + (N - 1) c vanishes, and the base stays.
    assert fused("model_stock", base, [apart[0], -apart[0]], torch.float64).tolist() == [0, 0, 0, 0]
