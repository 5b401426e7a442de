"""Critical values for looking often: against published tables and a simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from cofuse.measure.gate.spending import boundary, spent
from cofuse.measure.gate.tails import critical, student_critical, student_upper, upper

# Five equal looks at a two-sided 5 %: Lan and DeMets 1983, Reboussin et al. 2000, and every program since.
TABLE = (4.8769, 3.3570, 2.6803, 2.2898, 2.0310)


@pytest.mark.parametrize("looks", range(1, 6))
def test_published_critical_values(looks: int) -> None:
    assert boundary(tuple(k / 5 for k in range(1, looks + 1)), 0.025) == pytest.approx(TABLE[looks - 1], abs=2e-4)


def test_one_look_is_the_ordinary_test() -> None:
    for tail in (0.1, 0.025, 0.001):
        assert boundary((1.0,), tail) == pytest.approx(norm.isf(tail))
        assert spent(tail, 1.0) == pytest.approx(tail)
        assert spent(tail, 0.0) == 0


@given(st.lists(st.integers(1, 40), min_size=1, max_size=4, unique=True), st.floats(0.001, 0.1))
def test_an_early_look_asks_for_more_than_the_last(cut: list[int], tail: float) -> None:
    looks = tuple(sorted({k / 40 for k in cut} | {1.0}))
    values = [boundary(looks[: k + 1], tail) for k in range(len(looks))]
    assert all(value >= critical(tail) - 1e-6 for value in values)
    assert values[0] >= values[-1] - 1e-6


def test_all_looks_together_err_as_often_as_one() -> None:
    random = np.random.default_rng(1)
    looks = (0.013, 0.1, 0.2, 0.37, 0.6, 0.8, 1.0)
    steps = np.sqrt(np.diff((0.0, *looks))) * random.standard_normal((400_000, len(looks)))
    z = steps.cumsum(1) / np.sqrt(looks)
    c = [boundary(looks[: k + 1], 0.025) for k in range(len(looks))]
    assert np.mean((z > c).any(1)) == pytest.approx(0.025, abs=0.001)


def test_tails_are_those_of_scipy() -> None:
    assert upper(6.0) == pytest.approx(norm.sf(6.0))
    assert math.isinf(critical(0.0))
    assert student_critical(0.025, 4) == pytest.approx(2.7764, abs=1e-4)
    assert student_upper(2.7764, 4) == pytest.approx(0.025, abs=1e-5)
    assert student_critical(0.025, math.inf) == pytest.approx(1.959964)
