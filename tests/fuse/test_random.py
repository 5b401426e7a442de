"""Draws by counter: the published generator, the same bits everywhere, and the laws of chance."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from cofuse.fuse.kernels import draw as kernel
from cofuse.fuse.methods.random import GOLDEN, RANGE, draws, limit, stream

WORD = (1 << 64) - 1


def slow(key: int, start: int, count: int) -> list[int]:
    """The definition, in whole numbers."""
    found = []
    for i in range(start, start + count):
        z = (key + i // 2 * GOLDEN) & WORD
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & WORD
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & WORD
        z ^= z >> 31
        found.append(z >> 32 if i % 2 else z & 0xFFFFFFFF)
    return found


def test_gives_what_splitmix64_is_published_to_give() -> None:
    # The first outputs of Vigna's splitmix64.c from the state 0; it adds the constant before the first one.
    words = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert draws(GOLDEN, 0, np.zeros(6)).tolist() == [half for w in words for half in (w & 0xFFFFFFFF, w >> 32)]


@pytest.mark.parametrize("key", [0, 1, WORD, 0x8000000000000000, stream(3, "x", 1)])
@pytest.mark.parametrize(("start", "count"), [(0, 1), (0, 7), (1, 8), (5, 1), (2**33 + 1, 9), (10, 0)])
def test_numpy_torch_and_the_kernel_draw_the_same(key: int, start: int, count: int) -> None:
    expected = slow(key, start, count)
    assert draws(key, start, np.zeros(count, np.float32)).tolist() == expected
    assert draws(key, start, torch.zeros(count)).tolist() == expected
    words = np.empty(count // 2 + 1, np.uint64)
    odd = int(kernel.draw(np.uint64(key), np.uint64(start), words))
    assert words.view(np.uint32)[odd : odd + count].tolist() == expected


def test_blocks_draw_what_the_whole_does() -> None:
    whole = draws(5, 0, np.zeros((7, 11)))
    assert whole.shape == (7, 11)
    for step in (1, 2, 3, 10, 76, 77):
        parts = [draws(5, start, np.zeros(min(step, 77 - start))) for start in range(0, 77, step)]
        assert np.concatenate(parts).tolist() == whole.reshape(-1).tolist()


def test_streams_differ_by_seed_tensor_and_model_and_are_even() -> None:
    names = ["a", "b", "a.b", "model.layers.1.weight", "model.layers.11.weight", "1\na"]
    keys = [stream(seed, name, model) for seed in (0, 1, 11) for name in names for model in (0, 1, 11)]
    assert len(set(keys)) == len(keys)
    n = 200_000
    drawn = [draws(key, 0, np.zeros(n)) for key in keys[:6]]
    for one in drawn:
        for shift in (0, 24):  # every value of the lower and of the upper 8 bits equally often
            counts = np.bincount((one >> shift) & 0xFF, minlength=256)
            assert ((counts - n / 256) ** 2 / (n / 256)).sum() < 255 + 5 * np.sqrt(2 * 255)
    for a, b in itertools.combinations(drawn, 2):
        assert abs(_correlation(a, b)) < 5 / np.sqrt(n)


@pytest.mark.parametrize("lag", [1, 2, 128, 131072])
def test_entries_do_not_know_of_each_other(lag: int) -> None:
    drawn = draws(stream(0, "x", 0), 0, np.zeros(1_000_000))
    assert abs(_correlation(drawn[:-lag], drawn[lag:])) < 5 / np.sqrt(len(drawn))


@pytest.mark.parametrize("probability", [0.001, 0.1, 0.5, 0.99])
def test_an_event_happens_as_often_as_it_is_likely(probability: float) -> None:
    n = 1_000_000
    happened = draws(stream(1, "y", 2), 0, np.zeros(n)) < limit(probability)
    assert abs(happened.mean() - probability) < 5 * np.sqrt(probability * (1 - probability) / n)


def test_the_ends_are_certain() -> None:
    assert limit(0.0) == 0
    assert limit(1.0) == limit(1.5) == RANGE
    assert limit(-0.5) == 0


def _correlation(a: Any, b: Any) -> float:
    return float(np.corrcoef(a, b)[0, 1])
