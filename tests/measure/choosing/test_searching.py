"""The search over mixtures: what it tries, what it takes, and that it only sees what it is given."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cofuse.checkpoint import Checkpoint, Memory, content_id
from cofuse.errors import FuseError, TaskError
from cofuse.fuse import fuse
from cofuse.measure.choosing.searching import GRID, mixtures, search, search_donors

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


def test_a_score_that_is_no_number_never_wins() -> None:
    models: list[Checkpoint] = [model(1), model(2)]
    said = {(1.0, 0.0): math.nan, (0.75, 0.25): math.inf, (0.5, 0.5): 0.1, (0.0, 1.0): 0.0}
    told = iter(said.values())
    found = search(models, lambda _: next(told), weights=list(said))
    assert (found.weights, found.score) == ((0.5, 0.5), 0.1)
    with pytest.raises(TaskError, match="no candidate has a score"):
        search(models, lambda _: math.nan, weights=list(said))


class Counted(Memory):
    """A checkpoint that counts the bytes that are read of it."""

    count = 0

    def read_bytes(self, name: str, start: int = 0, stop: int | None = None) -> bytearray:
        data = super().read_bytes(name, start, stop)
        self.count += len(data)
        return data


def test_the_size_of_a_fisher_is_found_once_for_all_candidates() -> None:
    fishers: list[Checkpoint | None] = [Counted({"x": fisher_of(i).read("x")}) for i in range(2)]
    search([model(1), model(2)], near, statistics={"fisher": fishers}, weights=mixtures(2, 10))
    once = fisher_of(1).spec("x").nbytes
    assert [one.count for one in fishers if isinstance(one, Counted)] == [11 * once] * 2


def test_statistics_of_another_model_are_refused_and_models_hashed_once() -> None:
    models = [Counted({"x": model(i).read("x")}) for i in (1, 2)]
    bound: list[Checkpoint | None] = [
        Memory(
            {"x": fisher_of(i).read("x")},
            files={"statistics.json": json.dumps({"kind": "fisher", "model": content_id(one)}).encode()},
        )
        for i, one in enumerate(models)
    ]
    for one in models:
        one.count = 0
    search(models, near, statistics={"fisher": bound}, weights=mixtures(2, 10))
    assert [one.count for one in models] == [11 * models[0].spec("x").nbytes] * 2
    with pytest.raises(FuseError, match="statistics of another model"):
        search(models, near, statistics={"fisher": bound[::-1]})


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
