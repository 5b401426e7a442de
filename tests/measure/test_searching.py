"""The search over mixtures: what it tries, what it takes, and that it only sees what it is given."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cofuse.checkpoint import Checkpoint, Memory
from cofuse.errors import TaskError
from cofuse.fuse import fuse
from cofuse.measure.searching import GRID, mixtures, search, search_donors

TARGET = torch.linspace(-1, 1, 20)


def model(seed: int) -> Memory:
    generator = torch.Generator().manual_seed(seed)
    return Memory({"x": TARGET + torch.randn(20, generator=generator)})


def fisher_of(seed: int) -> Memory:
    return Memory({"x": torch.rand(20, generator=torch.Generator().manual_seed(seed)) + 0.01})


def near(fused: Checkpoint) -> float:
    """How near a checkpoint is to what is wanted."""
    return -float((fused.read("x") - TARGET).square().sum())


def test_the_grid_of_a_pair_is_the_papers() -> None:
    grid = mixtures(2)
    assert len(grid) == GRID == 51
    np.testing.assert_allclose([w[1] for w in grid], np.arange(51) / 50)


@settings(max_examples=30, deadline=None)
@given(models=st.integers(2, 6), count=st.integers(2, 80), seed=st.integers(0, 9))
def test_mixtures_are_shares_of_one_whole_and_the_same_for_a_seed(models: int, count: int, seed: int) -> None:
    found = mixtures(models, count, seed)
    assert found == mixtures(models, count, seed)
    assert len(found) == count
    for weights in found:
        assert len(weights) == models
        assert min(weights) >= 0
        assert abs(sum(weights) - 1) < 1e-9
    if models > 2 and count > models:
        assert (1 / models,) * models in found
        assert all(tuple(float(i == j) for j in range(models)) in found for i in range(models))


def test_it_takes_the_best_of_what_it_tried() -> None:
    for statistics in (None, {"fisher": [fisher_of(1), fisher_of(2)]}):
        models: list[Checkpoint] = [model(1), model(2)]
        found = search(models, near, statistics=statistics)
        method = "linear" if statistics is None else "fisher"
        by_hand = {
            weights: near(fuse(method, models, weights=weights, statistics=statistics)) for weights in mixtures(2)
        }
        assert found.scores == by_hand
        assert found.score == max(by_hand.values()) == near(found.fused)
        assert by_hand[found.weights] == found.score


def test_a_fisher_that_knows_which_entries_are_right_finds_what_a_mean_cannot() -> None:
    right = torch.arange(20) % 2 == 0
    models: list[Checkpoint] = [Memory({"x": torch.where(mine, TARGET, TARGET + 1)}) for mine in (right, ~right)]
    fishers = [Memory({"x": mine.float() + 1e-9}) for mine in (right, ~right)]
    assert search(models, near, statistics={"fisher": fishers}, weights=[(0.5, 0.5)]).score > -1e-3
    assert search(models, near).score < -4


def test_among_equals_the_target_keeps_most() -> None:
    found = search([model(1), model(2)], lambda _: 50.0, weights=[(0.0, 1.0), (0.75, 0.25), (0.5, 0.5)])
    assert found.weights == (0.75, 0.25)


def test_several_donors_the_best_first() -> None:
    target = Memory({"x": TARGET + 1})
    donors: dict[str, Checkpoint] = {
        "useless": Memory({"x": TARGET + 2}),
        "useful": Memory({"x": TARGET - 1}),
        "so-so": Memory({"x": TARGET + 0.5}),
    }
    found = search_donors(target, donors, near)
    assert list(found) == ["useful", "so-so", "useless"]
    assert found["useful"].weights == (0.5, 0.5)
    assert found["useless"].weights == (1.0, 0.0)
    measured = {"target": Memory({"x": torch.ones(20)}), **{name: Memory({"x": torch.ones(20)}) for name in donors}}
    same = search_donors(target, donors, near, statistics={"fisher": measured})
    assert {name: one.weights for name, one in same.items()} == {name: one.weights for name, one in found.items()}


def test_nothing_to_search_is_told() -> None:
    with pytest.raises(TaskError, match="nothing to search"):
        mixtures(1)
    with pytest.raises(TaskError, match="nothing to search"):
        search([model(1), model(2)], near, weights=[])
