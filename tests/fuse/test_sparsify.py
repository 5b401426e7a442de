"""TIES, DARE, DELLA and Breadcrumbs against the same written out in float64, against PEFT, and by their laws."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from cofuse.checkpoint import Memory
from cofuse.errors import CofuseError, FuseError
from cofuse.fuse import METHODS, CpuExecutor, Fused, ModelInput, Recipe, make_plan
from cofuse.fuse.execute.cpu import compiled
from cofuse.fuse.methods import keyword_arguments
from cofuse.fuse.methods.random import RANGE, draws, stream

from .scans import NAME, ScanOf

TRIMMED = ["ties", "breadcrumbs", "breadcrumbs_ties"]
DROPPED = ["dare_linear", "dare_ties"]
RANKED = ["della", "della_linear"]
EVERY = [*TRIMMED, *DROPPED, *RANKED]
every_method = pytest.mark.parametrize("method", EVERY)


def fused(
    method: str, models: Sequence[Any], base: Any, *, seed: int = 0, threads: int = 1, **parameters: Any
) -> Fused:
    """A fuse of arrays; a list gives each model its own value."""
    own = {name: value for name, value in parameters.items() if isinstance(value, list)}
    shared = {("lambda" if n == "scale" else n): v for n, v in parameters.items() if n not in own}
    recipe = Recipe(
        merge_method=method,
        models=tuple(
            ModelInput(model=str(i), parameters={n: v[i] for n, v in own.items()}) for i in range(len(models))
        ),
        base_model="base",
        parameters=shared,
        seed=seed,
    )
    given = {str(i): model for i, model in enumerate(models)} | {"base": base}
    opened = {part.key: Memory({NAME: torch.as_tensor(given[part.key])}) for part in recipe.parts}
    return Fused(make_plan(recipe, opened), list(opened.values()), CpuExecutor(threads))


def fuse(method: str, models: Sequence[Any], base: Any, **parameters: Any) -> Any:
    return fused(method, models, base, **parameters).read(NAME).double().numpy()


def arrays(shape: tuple[int, ...], count: int = 3, *, spread: float = 0.1, seed: int = 0) -> tuple[list[Any], Any]:
    generator = np.random.default_rng(seed)
    base = generator.standard_normal(shape).astype(np.float32)
    models = [base + (generator.standard_normal(shape) * spread).astype(np.float32) for _ in range(count)]
    for model in models:  # some of it untouched
        model.reshape(-1)[1::5] = base.reshape(-1)[1::5]
    return models, base


def kept(method: str, delta: Any, density: float, gamma: float, epsilon: float, model: int, seed: int) -> Any:
    """Which entries a mask keeps, of the whole tensor at once."""
    n = delta.size
    if density >= 1 or density <= 0:
        return np.full(delta.shape, density >= 1)
    if method in TRIMMED:
        order = np.argsort(-abs(delta).reshape(-1), kind="stable")
        count = max(1, int(density * n)) if method == "ties" else int(density * n)
        first = 0 if method == "ties" else min(int(gamma * n), n - count)
        mask = np.zeros(n, bool)
        mask[order[first : first + count]] = True
        return mask.reshape(delta.shape)
    drawn = draws(stream(seed, NAME, model), 0, delta) / RANGE
    if method in DROPPED:
        return drawn < density
    rows = abs(delta).reshape(len(delta) if delta.ndim > 1 else 1, -1)
    rank = np.argsort(np.argsort(rows, axis=1, kind="stable"), axis=1)
    share = rank / (rows.shape[1] - 1) if rows.shape[1] > 1 else np.full(rank.shape, 0.5)
    return drawn < (density + epsilon * (2 * share - 1)).reshape(delta.shape)


def slow(method: str, models: Sequence[Any], base: Any, *, seed: int = 0, **parameters: Any) -> Any:
    """The formulas, entry by entry in float64."""
    given = {**{name: p.default for name, p in METHODS[method].parameters.items()}, **parameters}
    weight, density, gamma, epsilon = (
        v if isinstance(v := given.get(name, 0.0), list) else [v] * len(models)
        for name in ("weight", "density", "gamma", "epsilon")
    )
    deltas = []
    for i, model in enumerate(models):
        delta = (model - base).astype(np.float64)  # in float32, as blocks are
        mask = kept(method, delta, density[i], gamma[i], epsilon[i], i, seed)
        sparse = delta * mask
        if given["rescale"] and 0 < density[i] < 1:
            if given["rescale_by"] == "l1":
                before, after = abs(delta).sum(), abs(sparse).sum()
                sparse *= before / after if min(before, after) >= 1e-7 else 1.0
            else:
                sparse /= density[i]
        deltas.append(weight[i] * sparse)
    stack, w = np.stack(deltas), np.array(weight).reshape(-1, *[1] * base.ndim)
    if "sign" in given:
        votes = (np.sign(stack) if given["sign"] == "count" else stack).sum(0)
        agrees = np.sign(stack) == np.where(votes >= 0, 1, -1)
        total, divisor = (stack * agrees).sum(0), (w * agrees).sum(0)
    else:
        total, divisor = stack.sum(0), np.full(base.shape, sum(weight))
    if given["normalize"]:
        total = total / np.where(divisor == 0, 1, divisor)
    return base + given.get("scale", 1.0) * total


SETTINGS: list[dict[str, Any]] = [
    {"density": 0.5},
    {"density": [0.2, 0.7, 1.0], "weight": [0.5, 1.0, 0.3], "scale": 0.7},
    {"density": [0.6, 0.0, 0.3], "weight": [0.5, -1.0, 0.3], "normalize": True},
    {"density": 0.3, "weight": [0.5, 2.0, 0.3], "normalize": False, "rescale": True},
    {"density": 0.8, "rescale": False, "int8_mask": True},
]


@every_method
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("shape", [(60, 71), (4260,), (20, 71, 3), (1, 1), ()], ids=str)
def test_close_to_float64(method: str, settings: dict[str, Any], shape: tuple[int, ...]) -> None:
    models, base = arrays(shape)
    extra = {"gamma": [0.0, 0.2, 0.6]} if "breadcrumbs" in method else {"epsilon": 0.1} if method in RANKED else {}
    expected = slow(method, models, base, **settings, **extra)
    got = fuse(method, models, base, **settings, **extra)
    # A rounding or two in float32 of numbers of this size.
    size = np.maximum(abs(expected), np.max([abs(m) for m in models], axis=0)) + abs(base)
    assert (abs(got - expected) <= 4e-7 * size).all()


@every_method
def test_laws_of_the_rest_of_the_options(method: str) -> None:
    models, base = arrays((40, 50))
    common: dict[str, Any] = {"density": 0.5, "weight": [0.3, 0.5, 0.9]}
    plain = fused(method, models, base, **common).read(NAME)
    assert torch.equal(plain, fused(method, models, base, **common, int8_mask=True).read(NAME))
    assert torch.equal(plain, fused(method, models, base, **common, seed=1).read(NAME)) == (method in TRIMMED)
    # lambda scales what is added.
    half = fused(method, models, base, **common, scale=0.5).read(NAME) - torch.as_tensor(base)
    torch.testing.assert_close(2 * half, plain - torch.as_tensor(base), rtol=1e-4, atol=2e-6)
    if "sign" in METHODS[method].parameters:
        alike = fuse(method, models, base, density=1.0, sign="count")
        np.testing.assert_allclose(alike, slow(method, models, base, density=1.0, sign="count"), rtol=0, atol=1e-6)


@every_method
@pytest.mark.parametrize("density", [0.0, 1.0])
def test_the_ends_of_density(method: str, density: float) -> None:
    models, base = arrays((30, 20))
    got = fuse(method, models, base, density=density, weight=[0.5, 0.2, 0.4], normalize=False)
    if density == 0:
        np.testing.assert_array_equal(got, base)
    elif "sign" not in METHODS[method].parameters:
        exact = base + sum(w * (m.astype(np.float64) - base) for w, m in zip((0.5, 0.2, 0.4), models, strict=True))
        np.testing.assert_allclose(got, exact, rtol=0, atol=1e-6)


@every_method
@pytest.mark.parametrize("threads", [1, 4])
def test_the_same_bytes_on_any_threads_and_for_any_range(method: str, threads: int) -> None:
    models, base = arrays((3, 100_003), 2)  # several blocks, none of them a power of two
    one = fused(method, models, base, density=0.4)
    many = fused(method, models, base, density=0.4, threads=threads)
    whole = bytes(one.read_bytes(NAME))
    for start, stop in ((700_001, 900_000), (0, 5), (len(whole) - 9, len(whole))):
        assert bytes(many.read_bytes(NAME, start, stop)) == whole[start:stop]
    assert bytes(many.read_bytes(NAME)) == whole


@every_method
@pytest.mark.parametrize("rescale_by", ["l1", "density"])
def test_compiled_as_plain_and_torch_as_numpy(method: str, rescale_by: str) -> None:
    models, base = arrays((30, 41))
    row = METHODS[method].unit == "row"
    parameters = {name: p.default for name, p in METHODS[method].parameters.items()}
    parameters |= {"density": (0.5, 0.3, 0.7), "weight": (0.5, 1.0, 0.3), "rescale": True, "rescale_by": rescale_by}
    parameters |= {"epsilon": (0.1,) * 3} if method in RANKED else {"gamma": (0.1,) * 3} if "crumbs" in method else {}
    arguments = keyword_arguments(parameters)
    found = []
    survey = METHODS[method].survey
    assert survey is not None
    for function, like in (
        (compiled(METHODS[method]), np.asarray),
        (METHODS[method].function, np.asarray),
        (METHODS[method].function, torch.from_numpy),
    ):
        scan = ScanOf([like(m) for m in models], like(base), block=410, row=41 if row else None, seed=3)
        known = survey(scan, **arguments)
        parts = [function(*scan.given(part), **arguments, known=known, place=place) for place, part in scan.places()]
        found.append(np.concatenate([np.asarray(p).reshape(-1) for p in parts]))
    np.testing.assert_allclose(found[1], found[0], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found[2], found[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method", TRIMMED)
@pytest.mark.parametrize("density", [1e-9, 0.01, 0.37, 0.99])
@pytest.mark.parametrize("levels", [2, 9, 10**6])
def test_exactly_so_many_are_kept_and_the_largest(method: str, density: float, levels: int) -> None:
    generator = np.random.default_rng(0)
    n = 300_000
    delta = (generator.integers(1, levels + 1, n) * generator.choice([-1, 1], n)).astype(np.float32)
    extra = {} if method == "ties" else {"gamma": 0.005}
    got = fuse(method, [delta], np.zeros(n, np.float32), density=density, normalize=False, **extra)
    count = max(1, int(density * n)) if method == "ties" else int(density * n)
    assert np.count_nonzero(got) == count
    assert set(got[got != 0] - delta[got != 0]) <= {0.0}
    dropped, first = abs(delta[got == 0]), 0 if method == "ties" else min(int(0.005 * n), n - count)
    if count:
        assert (dropped > abs(got[got != 0]).max()).sum() <= first
        assert (dropped >= abs(got[got != 0]).min()).sum() >= first
    np.testing.assert_array_equal(got, delta * kept(method, delta, density, 0.005, 0, 0, 0))


def test_of_equal_magnitudes_the_first_are_kept() -> None:
    delta = np.array([1.0, -2.0, 1.0, 1.0, -1.0], np.float32)
    base = np.zeros(5, np.float32)
    assert fuse("ties", [delta], base, density=0.6).tolist() == [1.0, -2.0, 1.0, 0.0, 0.0]
    # The one dropped at the top is the first of the largest, then the first of the rest are kept.
    got = fuse("breadcrumbs", [delta], base, density=0.4, gamma=0.4)
    assert got.tolist() == [0.0, 0.0, 1.0, 1.0, 0.0]


@pytest.mark.parametrize("method", EVERY)
def test_rescaling_gives_the_norm_back(method: str) -> None:
    models, base = arrays((50, 60), 1)
    zero = np.zeros_like(base)
    delta = models[0] - base
    got = fuse(method, [delta], zero, density=0.3, rescale=True, normalize=False)
    assert abs(got).sum() == pytest.approx(abs(delta.astype(np.float64)).sum(), rel=1e-6)
    by = fuse(method, [delta], zero, density=0.3, rescale=False, normalize=False)
    assert abs(by[by != 0] - delta[by != 0]).max() <= 1e-7


@pytest.mark.parametrize("method", [*DROPPED, *RANKED])
def test_dividing_by_the_probability_keeps_the_expectation_of_each_entry(method: str) -> None:
    delta = np.arange(1, 201, dtype=np.float32).reshape(2, 100)
    seeds, density = 400, 0.4
    mean = np.zeros(delta.shape)
    for seed in range(seeds):
        mean += fuse(
            method, [delta], np.zeros_like(delta), density=density, rescale_by="density", normalize=False, seed=seed
        )
    share = np.full(delta.shape, density)
    if method in RANKED:
        share = density + 0.15 * (2 * np.arange(100) / 99 - 1) + 0 * delta
    error = delta * np.sqrt((1 - share) / share / seeds)
    z = (mean / seeds - delta) / error
    assert abs(z).max() < 5
    assert abs(np.square(z).mean() - 1) < 0.5


@pytest.mark.parametrize("method", RANKED)
def test_larger_entries_of_a_row_are_kept_more_often(method: str) -> None:
    generator = np.random.default_rng(0)
    # Rows of very different size: ranks are within the row.
    delta = (generator.standard_normal((2000, 100)) * 10.0 ** generator.integers(-3, 3, (2000, 1))).astype(np.float32)
    got = fuse(method, [delta], np.zeros_like(delta), density=0.5, epsilon=0.3, rescale=False, normalize=False) != 0
    rank = np.argsort(np.argsort(abs(delta), axis=1), axis=1)
    for r in (0, 1, 25, 50, 98, 99):
        share = 0.2 + 0.6 * r / 99
        assert abs(got[rank == r].mean() - share) < 5 * np.sqrt(share * (1 - share) / 2000)
    assert abs(got.mean() - 0.5) < 5 * np.sqrt(0.25 / got.size)


def test_models_and_tensors_have_masks_of_their_own() -> None:
    ones = np.ones(10_000, np.float32)
    got = fuse("dare_linear", [ones, ones], 0 * ones, density=0.5, weight=[1.0, 2.0], rescale=False)
    counts = np.bincount(got.astype(int), minlength=4)
    assert (abs(counts - 2500) < 5 * np.sqrt(10_000 * 0.25 * 0.75)).all()


def test_cancelled_weights_and_signs() -> None:
    base = np.zeros(3, np.float32)
    a, b = np.array([2.0, 2.0, 1.0], np.float32), np.array([2.0, -2.0, 3.0], np.float32)
    # A sum of zero elects +, and only what is positive is merged.
    assert fuse("ties", [a, b], base).tolist() == [2.0, 2.0, 2.0]
    # Weights are in the votes (2 - 2, 2 + 2, 1 - 3), and where those that agree cancel nothing is divided.
    assert fuse("ties", [a, b], base, weight=[1.0, -1.0]).tolist() == [2.0, 4.0, 3.0]
    assert fuse("dare_linear", [a, b], base, weight=[1.0, -1.0], normalize=True).tolist() == [0.0, 4.0, -2.0]
    many = [np.array([3.0], np.float32), *[np.array([-1.0], np.float32)] * 2]
    assert fuse("ties", many, np.zeros(1, np.float32)).tolist() == [3.0]
    assert fuse("ties", many, np.zeros(1, np.float32), sign="count").tolist() == [-1.0]


@pytest.mark.parametrize("method", RANKED)
def test_probabilities_beyond_certain_are_refused(method: str) -> None:
    models, base = arrays((3, 4), 1)
    for density, epsilon in ((0.9, 0.1), (0.1, 0.1), (0.2, 0.3)):
        with pytest.raises(FuseError, match="outside"):
            fuse(method, models, base, density=density, epsilon=epsilon)
    assert fuse(method, models, base, density=1.0, epsilon=0.3).shape == (3, 4)


@pytest.mark.parametrize(
    ("name", "value"), [("density", 1.3), ("density", -0.1), ("sign", "most"), ("rescale_by", "l2"), ("rescale", 0.5)]
)
def test_wrong_parameters_are_refused(name: str, value: Any) -> None:
    models, base = arrays((2, 2), 1)
    with pytest.raises((CofuseError, ValueError), match=name):
        fused("ties", models, base, **{name: value})


# PEFT's functions on deltas. Their masks at random come from torch's generator, so they are compared without any.


@pytest.fixture(scope="module")
def peft() -> Any:
    return pytest.importorskip("peft.utils.merge_utils")


def deltas(count: int = 3) -> tuple[list[Any], list[Any]]:
    models, base = arrays((40, 25), count)
    found = [m - base for m in models]
    return found, [torch.from_numpy(d) for d in found]


@pytest.mark.parametrize("density", [0.2, 0.5, 0.93])
@pytest.mark.parametrize(("sign", "named"), [("sum", "total"), ("count", "frequency")])
def test_ties_as_in_peft_for_equal_weights(peft: Any, density: float, sign: str, named: str) -> None:
    mine, theirs = deltas()
    expected = peft.ties(theirs, torch.full((3,), 0.8), density, named).double().numpy()
    got = fuse("ties", mine, 0 * mine[0], density=density, sign=sign, scale=0.8)
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("density", [0.2, 0.5, 0.93])
def test_breadcrumbs_without_outliers_is_pefts_magnitude_prune(peft: Any, density: float) -> None:
    mine, theirs = deltas()
    expected = peft.magnitude_prune(theirs, torch.tensor([0.5, 1.0, -0.3]), density).double().numpy()
    got = fuse("breadcrumbs", mine, 0 * mine[0], density=density, gamma=0.0, weight=[0.5, 1.0, -0.3])
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-7)


def test_dare_as_in_peft_where_nothing_is_dropped(peft: Any) -> None:
    mine, theirs = deltas()
    weight = [0.5, 1.0, 0.3]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that nothing is dropped
        linear = peft.dare_linear(theirs, torch.tensor(weight), 1.0).double().numpy()
        ties = peft.dare_ties(theirs, torch.full((3,), 0.8), 1.0).double().numpy()
    np.testing.assert_allclose(fuse("dare_linear", mine, 0 * mine[0], weight=weight), linear, rtol=1e-6, atol=1e-7)
    got = fuse("dare_ties", mine, 0 * mine[0], normalize=True, scale=0.8)
    np.testing.assert_allclose(got, ties, rtol=1e-6, atol=1e-7)


def test_dare_drops_as_many_as_peft_and_scales_as_it_does(peft: Any) -> None:
    ones = torch.ones(100_000)
    torch.manual_seed(0)
    theirs = peft.dare_linear([ones], torch.tensor([0.7]), 0.3)
    mine = fuse("dare_linear", [ones], 0 * ones, density=0.3, weight=[0.7], rescale_by="density")
    assert set(np.unique(mine.astype(np.float32))) == set(np.unique(theirs.numpy()))
    assert abs((mine != 0).mean() - float((theirs != 0).double().mean())) < 5 * np.sqrt(2 * 0.21 / len(mine))
