"""Methods that a few bad models cannot spoil, beside twins on whole float64 vectors."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from cofuse.checkpoint import Memory
from cofuse.errors import CofuseError, FuseError
from cofuse.fuse import Fused, fuse
from cofuse.fuse import fused as fused_module
from cofuse.fuse.methods.order import comparators

Vector = npt.NDArray[np.float64]
SHAPES = {"a": (40, 13), "b": (57,), "c": (), "d": (3, 2500)}


def draw(count: int, dtype: torch.dtype = torch.float32, spread: float = 0.3) -> tuple[Memory, list[Memory]]:
    """A base and models of several tensors."""
    generator = torch.Generator().manual_seed(count)
    base = {n: torch.randn(s, generator=generator) for n, s in SHAPES.items()}
    models = [
        Memory({n: (t + spread * torch.randn(t.shape, generator=generator)).to(dtype) for n, t in base.items()})
        for _ in range(count)
    ]
    return Memory({n: t.to(dtype) for n, t in base.items()}), models


def flat(model: Memory | Fused, names: Sequence[str] = tuple(SHAPES)) -> Vector:
    return np.concatenate([model.read(n).double().numpy().reshape(-1) for n in names])


def bad(value: float) -> Memory:
    return Memory({n: torch.full(s, value) for n, s in SHAPES.items()})


def off(got: Vector, expected: Vector) -> float:
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


# Order statistics


@pytest.mark.parametrize("count", range(1, 10))
def test_a_network_sorts_every_row_of_zeros_and_ones(count: int) -> None:
    """Which is enough: what sorts all of these sorts everything (the 0-1 principle)."""
    for wanted in (range(count), [count // 2], [0], range(count // 3, count - count // 3)):
        network = comparators(count, frozenset(wanted))
        for row in product((0, 1), repeat=count):
            wires = list(row)
            for low, high in network:
                wires[low], wires[high] = min(wires[low], wires[high]), max(wires[low], wires[high])
            assert all(wires[i] == sorted(row)[i] for i in wanted)


def test_a_network_leaves_out_what_nobody_wants() -> None:
    assert comparators(8, frozenset()) == ()
    assert len(comparators(8, frozenset(range(8)))) == 19  # Batcher's
    assert len(comparators(8, frozenset({0}))) == 7


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 12])
def test_the_median_is_numpys(count: int, dtype: torch.dtype) -> None:
    _, models = draw(count, dtype)
    got = fuse("median", models)
    for name in SHAPES:
        values = np.stack([m.read(name).double().numpy() for m in models])
        expected = torch.tensor(np.median(values, axis=0)).to(dtype)
        torch.testing.assert_close(got.read(name), expected, rtol=torch.finfo(dtype).eps, atol=1e-7)
        if count % 2:
            assert torch.equal(got.read(name), expected)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 10])
@pytest.mark.parametrize("trim", [0.0, 0.1, 0.25, 0.3, 0.5])
def test_the_trimmed_mean_leaves_out_the_ends(count: int, trim: float) -> None:
    _, models = draw(count)
    values = np.sort(np.stack([flat(m) for m in models]), axis=0)
    cut = min(int(round(trim * count * 1e6) // 1e6), (count - 1) // 2)
    expected = values[cut : count - cut].mean(0)
    assert off(flat(fuse("trimmed_mean", models, trim=trim)), expected) < 1e-7


def test_a_share_that_is_whole_is_not_rounded_down() -> None:
    values = [float(i**2) for i in range(100)]
    models = [Memory({"x": torch.tensor([v])}) for v in values]
    assert fuse("trimmed_mean", models, trim=0.29).read("x").item() == pytest.approx(np.mean(values[29:71]))


@pytest.mark.parametrize("method", ["median", "trimmed_mean", "geometric_median", "krum", "multi_krum"])
@pytest.mark.parametrize("value", [1e4, -1e30])
def test_a_minority_of_bad_models_does_not_move_the_result_far(method: str, value: float) -> None:
    _, models = draw(7)
    settings = {"trim": 0.3} if method == "trimmed_mean" else {}
    good = np.stack([flat(m) for m in models])
    for place in (0, 8):  # first, last
        mixed: list[Any] = list(models)
        mixed[place:place] = [bad(value), bad(value / 2)]
        got = flat(fuse(method, mixed, **settings))
        spread = np.linalg.norm(good - good.mean(0), axis=1).max()
        assert np.linalg.norm(got - good.mean(0)) <= 1.5 * spread, place


# Geometric median


def geometric_median_twin(points: Vector, weight: Vector, eps: float = 1e-6) -> Vector:
    """Weiszfeld's steps on the vectors themselves."""
    v = weight @ points / weight.sum()
    for _ in range(3000):
        b = weight / np.maximum(np.linalg.norm(points - v, axis=1), eps)
        v = b @ points / b.sum()
    return np.asarray(v)


@pytest.mark.parametrize("weights", [[1, 1, 1, 1, 1], [0.5, 0.8, 1.0, 0.0, 0.6]])
def test_the_geometric_median_is_where_weiszfeld_ends(weights: list[float]) -> None:
    _, models = draw(5)
    points = np.stack([flat(m) for m in models])
    expected = geometric_median_twin(points, np.asarray(weights))
    got = flat(fuse("geometric_median", models, weights=weights))
    assert off(got, expected) < 2e-7
    # And there the unit vectors to the models balance, which is what makes it the least sum of distances.
    units = (points - expected) / np.linalg.norm(points - expected, axis=1)[:, None]
    assert np.linalg.norm(np.asarray(weights) @ units) < 1e-6


@pytest.mark.parametrize("scope", ["model", "tensor"])
@pytest.mark.parametrize("value", [1e3, 1e6, 1e12, 1e30])
def test_the_geometric_median_is_exact_however_far_a_bad_model_is(value: float, scope: str) -> None:
    _, models = draw(6)
    mixed = [bad(value), *models]
    got = fuse("geometric_median", mixed, scope=scope)
    for names in ([n] for n in SHAPES if n != "c") if scope == "tensor" else [list(SHAPES)]:
        expected = geometric_median_twin(np.stack([flat(m, names) for m in mixed]), np.ones(7))
        assert off(flat(got, names), expected) < 2e-5, names


def test_the_geometric_median_of_a_heavy_model_is_that_model() -> None:
    _, models = draw(4)
    got = flat(fuse("geometric_median", models, weights=[1, 10, 1, 1]))
    assert off(got, flat(models[1])) < 1e-6


def test_the_geometric_median_by_tensor() -> None:
    _, models = draw(5)
    got = fuse("geometric_median", models, scope="tensor")
    for name in SHAPES:
        expected = geometric_median_twin(np.stack([flat(m, [name]) for m in models]), np.ones(5))
        assert off(flat(got, [name]), expected) < 1e-5, name
    assert off(flat(got), flat(fuse("geometric_median", models))) > 1e-5


# Krum


def krum_twin(points: Vector, byzantine: int) -> Vector:
    count = len(points)
    scores = []
    for i in range(count):
        distances = sorted(np.sum((points[i] - points[j]) ** 2) for j in range(count) if j != i)
        scores.append(sum(distances[: count - byzantine - 2]))
    return np.asarray(scores)


@pytest.mark.parametrize(("count", "byzantine"), [(3, 0), (4, 0), (5, 1), (9, 2), (9, 3)])
def test_krum_keeps_the_model_of_the_least_score(count: int, byzantine: int) -> None:
    _, models = draw(count)
    scores = krum_twin(np.stack([flat(m) for m in models]), byzantine)
    kept = models[int(np.argmin(scores))]
    got = fuse("krum", models, byzantine=byzantine)
    for name in SHAPES:
        assert torch.equal(got.read(name), kept.read(name))
    for m in (1, 2, count - byzantine, count):
        best = np.argsort(scores, kind="stable")[:m]
        expected = np.mean([flat(models[i]) for i in best], axis=0)
        assert off(flat(fuse("multi_krum", models, byzantine=byzantine, m=m)), expected) < 1e-7
    expected = np.mean([flat(models[i]) for i in np.argsort(scores, kind="stable")[: count - byzantine]], axis=0)
    assert off(flat(fuse("multi_krum", models, byzantine=byzantine)), expected) < 1e-7


def test_krum_takes_the_earlier_of_equals_and_by_default_as_many_bad_ones_as_it_can() -> None:
    _, (a, b, *_) = draw(3)
    assert torch.equal(fuse("krum", [b, a, a, b]).read("a"), b.read("a"))
    _, models = draw(9)
    assert torch.equal(fuse("krum", models).read("a"), fuse("krum", models, byzantine=3).read("a"))


@pytest.mark.parametrize(
    ("count", "settings"),
    [(4, {"byzantine": 1}), (9, {"byzantine": 4}), (9, {"m": 10}), (9, {"m": 0}), (9, {"byzantine": -2}), (2, {})],
)
def test_krum_refuses_what_it_cannot_do(count: int, settings: dict[str, Any]) -> None:
    _, models = draw(count)
    method = "multi_krum" if "m" in settings else "krum"
    with pytest.raises(CofuseError):
        fuse(method, models, **settings).read("a")


def test_whole_models_decide_in_every_tensor() -> None:
    """One model is nearest in the large tensor, another in the small one: the large one decides."""

    def model(large: float, small: float) -> Memory:
        return Memory({"large": torch.full((5000,), large), "small": torch.full((3,), small)})

    models = [model(0.0, 9.0), model(1.0, 5.0), model(3.0, 5.0), model(9.0, 5.0)]
    got = fuse("krum", models)
    assert got.read("small").tolist() == models[1].read("small").tolist()
    assert got.read("large")[0] == 1.0


# Norm clipping


def norm_clip_twin(base: Vector, points: Vector, weight: Vector, bound: float, normalize: bool) -> Vector:
    deltas = points - base
    norms = np.linalg.norm(deltas, axis=1)
    most = bound or np.median(norms)
    clipped = deltas * np.minimum(1, most / norms)[:, None]
    return np.asarray(base + weight @ clipped / (weight.sum() if normalize else 1))


@pytest.mark.parametrize("bound", [0.0, 3.0, 1e9])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("scope", ["model", "tensor"])
def test_norm_clip(bound: float, normalize: bool, scope: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_module, "BLOCK", 100)
    base, models = draw(4)
    models[2] = Memory({n: 50 * models[2].read(n) for n in SHAPES})
    weights = [0.5, 1.0, 0.2, 2.0]
    got = fuse("norm_clip", models, base=base, weights=weights, bound=bound, normalize=normalize, scope=scope)
    for names in ([n] for n in SHAPES) if scope == "tensor" else [list(SHAPES)]:
        points = np.stack([flat(m, names) for m in models])
        expected = norm_clip_twin(flat(base, names), points, np.asarray(weights), bound, normalize)
        assert off(flat(got, names), expected) < 3e-7


def test_a_clipped_model_moves_the_base_no_further_than_the_bound() -> None:
    base, _ = draw(3)
    got = fuse("norm_clip", [bad(1e30)], base=base, bound=0.5)
    assert np.linalg.norm(flat(got) - flat(base)) == pytest.approx(0.5, rel=1e-4)


def test_models_that_are_their_base_are_clipped_to_it() -> None:
    base, models = draw(3)
    assert torch.equal(fuse("norm_clip", [base, base], base=base).read("a"), base.read("a"))
    # Half of them have not moved: the median length is that of the others' halved, and nothing is divided by zero.
    assert np.isfinite(flat(fuse("norm_clip", [base, models[0]], base=base))).all()


def test_weights_that_sum_to_zero_are_refused() -> None:
    base, models = draw(2)
    with pytest.raises(FuseError, match="sum to zero"):
        fuse("norm_clip", models, base=base, weights=[1, -1]).read("a")
    with pytest.raises(FuseError, match="sum to zero"):
        fuse("geometric_median", models, weights=[0, 0]).read("a")
