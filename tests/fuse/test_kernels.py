"""Compiled steps against their plain twins: the same bits, but for sums in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from cofuse.fuse.kernels import ranks as rank_kernels
from cofuse.fuse.kernels import steps as compiled
from cofuse.fuse.methods import steps as plain

KINDS: dict[str, Callable[[np.random.Generator, tuple[int, ...]], Any]] = {
    "normal": lambda g, shape: g.standard_normal(shape) * 0.01,
    "few values": lambda g, shape: g.integers(-3, 4, shape) * 0.01,
    "one magnitude": lambda g, shape: g.choice([-1e-5, 1e-5], shape),
    "untouched": lambda g, shape: g.standard_normal(shape) * (g.random(shape) < 0.05),
    "bfloat16": lambda g, shape: np.round(g.standard_normal(shape), 2),
    "all orders": lambda g, shape: g.standard_normal(shape) * 10.0 ** g.integers(-38, 30, shape),
    "zero": lambda g, shape: np.zeros(shape),
}
every_kind = pytest.mark.parametrize("kind", KINDS)
every_size = pytest.mark.parametrize("size", [1, 2, 15, 16, 17, 511, 512, 513, 5000])


def values(kind: str, *shape: int, seed: int = 0) -> Any:
    # + 0.0: differences of equal floats are +0, never -0.
    return KINDS[kind](np.random.default_rng(seed), shape).astype(np.float32) + np.float32(0)


@every_kind
@every_size
def test_counting(kind: str, size: int) -> None:
    block = values(kind, size)
    upper = [np.zeros(65536, np.int64) for _ in range(2)]
    for steps, counts in zip((plain, compiled), upper, strict=True):
        steps.tally(block, None, 16, counts)
    assert np.array_equal(*upper)
    assert upper[0].sum() == size
    prefix = int(upper[0].argmax())
    lower = [np.zeros(65536, np.int64) for _ in range(2)]
    for steps, counts in zip((plain, compiled), lower, strict=True):
        steps.tally(block, prefix, 0, counts)
    assert np.array_equal(*lower)
    assert lower[0].sum() == upper[0][prefix]
    found = plain.gather(block, prefix)
    assert found.dtype == compiled.gather(block, prefix).dtype == np.uint16
    assert np.array_equal(found, compiled.gather(block, prefix))
    assert np.array_equal(np.bincount(found, minlength=65536), lower[0])
    value = float(abs(block[size // 2]))
    assert plain.count_equal(block, value) == compiled.count_equal(block, value) > 0
    for count in (0, 1, size):
        assert plain.position(block, value, count) == compiled.position(block, value, count)


@every_kind
@every_size
def test_sums(kind: str, size: int) -> None:
    block = values(kind, size)
    wide = np.abs(block).astype(np.float64)
    for steps in (plain, compiled):
        assert steps.magnitude(block) == pytest.approx(math.fsum(wide), rel=1e-14)
        assert steps.squares(block) == pytest.approx(math.fsum(wide**2), rel=1e-14)


@every_kind
@every_size
def test_trimming(kind: str, size: int) -> None:
    block = values(kind, size)
    ordered = np.sort(np.abs(block))
    for low, high in [(0.0, math.inf), (float(ordered[size // 3]), float(ordered[-1 - size // 5])), (-1.0, math.inf)]:
        for outer_until, inner_until in [(0, 0), (size, size), (size // 2, size // 3), (size // 3, size // 2)]:
            kept = [block.copy(), block.copy()]
            for steps, out in zip((plain, compiled), kept, strict=True):
                steps.trim(out, (low, outer_until), (high, inner_until), 0.3)
            assert kept[0].tobytes() == kept[1].tobytes()


@every_kind
@every_size
@pytest.mark.parametrize("start", [0, 1, 2**33 + 1])
def test_dropping(kind: str, size: int, start: int) -> None:
    block = values(kind, size)
    for density in (1e-9, 0.3, 0.5, 1 - 1e-12):
        kept = [block.copy(), block.copy()]
        for steps, out in zip((plain, compiled), kept, strict=True):
            steps.drop(out, 2**64 - 3, start, density, 1.7)
        assert np.array_equal(*kept)


@every_kind
@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (5, 33), (4, 257), (2, 2048), (1, 6000)])
@pytest.mark.parametrize("inverse", [False, True])
def test_dropping_by_rank(kind: str, shape: tuple[int, int], inverse: bool) -> None:
    same_by_rank(values(kind, *shape), inverse)


@every_kind
@pytest.mark.parametrize("shape", [(3, 2), (5, 33), (4, 257)])
def test_dropping_by_rank_where_the_row_is_sorted(
    kind: str, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The constant is compiled in: the same text, interpreted.
    for name in ("_drop_by_rank", "_order", "_limit", "_weigh_by_rank", "_into_bins"):
        monkeypatch.setattr(rank_kernels, name, getattr(rank_kernels, name).py_func)
    monkeypatch.setattr(rank_kernels, "COMPARED", 0)
    same_by_rank(values(kind, *shape), inverse=False)


def same_by_rank(block: Any, inverse: bool) -> None:
    for density, epsilon in [(0.5, 0.15), (0.3, 0.29), (0.7, 0.0)]:
        kept = [block.copy(), block.copy()]
        for steps, out in zip((plain, compiled), kept, strict=True):
            steps.drop_by_rank(out, 2**64 - 5, 12345, density, epsilon, 1.7, inverse)
        assert np.array_equal(*kept)


@every_size
@pytest.mark.parametrize("models", [1, 2, 3, 9])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("count", [False, True])
@pytest.mark.parametrize("least", [0.0, 0.5])
def test_electing(size: int, models: int, normalize: bool, count: bool, least: float) -> None:
    stack = np.stack([values("few values", size, seed=i) for i in range(models)])
    base = values("normal", size)
    factor, weight = [0.5 + i for i in range(models)], [0.3 - 0.2 * i for i in range(models)]
    found = [
        steps.elect(stack.copy(), base.copy(), factor, weight, scale=0.7, normalize=normalize, count=count, least=least)
        for steps in (plain, compiled)
    ]
    assert found[0].tobytes() == found[1].tobytes()


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"all orders"}))  # whose squares leave the range of float32
@every_size
@pytest.mark.parametrize("models", [1, 2, 5])
def test_variance(kind: str, size: int, models: int) -> None:
    stack = np.stack([values(kind, size, seed=i) for i in range(models)])
    found = plain.variance(stack)
    assert found.tobytes() == compiled.variance(stack).tobytes()
    np.testing.assert_allclose(found, stack.astype(np.float64).var(0), rtol=1e-6, atol=1e-30)
    assert not compiled.variance(np.stack([stack[0]] * models)).any()


def test_steps_are_chosen_by_what_a_block_is() -> None:
    assert plain.steps_for(np.zeros(1, np.float32)) is compiled
    assert plain.steps_for(np.zeros(1)) is plain
    assert plain.steps_for(torch.zeros(1)) is plain  # type: ignore[arg-type]


@every_kind
def test_torch_takes_the_plain_steps_as_numpy_does(kind: str) -> None:
    block = values(kind, 6, 50)
    for change in (
        lambda steps, x: steps.trim(x.reshape(-1), (0.005, 20), (0.02, 3), 0.3),
        lambda steps, x: steps.drop(x.reshape(-1), 2**64 - 3, 7, 0.4, 0.3),
        lambda steps, x: steps.drop_by_rank(x, 2**64 - 3, 7, 0.4, 0.2, 0.3, False),
        lambda steps, x: steps.drop_by_rank(x, 2**64 - 3, 7, 0.4, 0.2, 0.3, True),
    ):
        mine, theirs = block.copy(), torch.from_numpy(block.copy())
        change(compiled, mine)
        change(plain, theirs)
        np.testing.assert_allclose(theirs.numpy(), mine, rtol=1e-6)
        assert np.array_equal(theirs.numpy() != 0, mine != 0)
