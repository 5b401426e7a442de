"""Matched pairs: against published values, a slow twin, and what must hold of any counts."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import binomtest, norm

from cofuse.measure.gate.matched import Matched, Rate

COUNTS = st.integers(1, 400).flatmap(
    lambda n: st.integers(0, n).flatmap(lambda b: st.tuples(st.just(b), st.integers(0, n - b), st.just(n)))
)


def likelihood_twin(b: int, c: int, n: int, d: float) -> float:
    """Tango's statistic from the definition: the share of negative flips is found by maximising the likelihood."""

    def slope(q: float) -> float:
        return b / (q + d) + c / q - 2 * (n - b - c) / (1 - 2 * q - d)

    low, high = max(0.0, -d) + 1e-12, (1 - d) / 2 - 1e-12
    q = high if slope(high) > 0 else low if slope(low) < 0 else brentq(slope, low, high)
    return float((b - c - n * d) / math.sqrt(n * (2 * q + d - d * d)))


@pytest.mark.parametrize(
    ("b", "c", "n", "low", "high"),
    [
        (1, 7, 21, -0.517, -0.026),  # airway reactivity before and after a transplantation: Fagerland et al. 2014
        (0, 0, 44, -0.0803, 0.0803),  # no flip at all: n / (n + z^2) on either side
    ],
)
def test_published_intervals(b: int, c: int, n: int, low: float, high: float) -> None:
    found = Matched(b, c, n).interval(norm.isf(0.025))
    assert found == pytest.approx((100 * low, 100 * high), abs=0.06)


@given(COUNTS, st.floats(-60, 60).filter(lambda d: abs(d) > 0.05))
def test_the_statistic_is_that_of_the_most_likely_share(counts: tuple[int, int, int], drop: float) -> None:
    b, c, n = counts
    if b > 0 and c > 0 and b + c < n:  # inside, where the likelihood has its top
        assert Matched(b, c, n).z(drop) == pytest.approx(likelihood_twin(b, c, n, -drop / 100), rel=1e-4, abs=1e-4)


@given(COUNTS, st.floats(0.5, 4))
def test_an_interval_holds_what_the_test_does_not_refuse(counts: tuple[int, int, int], z: float) -> None:
    found = Matched(*counts)
    low, high = found.interval(z)
    assert low - 1e-9 <= found.mean <= high + 1e-9
    for inside in (low + 1e-6, high - 1e-6):
        if low + 1e-5 < high:
            assert abs(found.z(-inside)) <= z + 1e-3
    assert found.z(-(low - 1e-4)) >= z - 1e-2 or low < -99.99
    assert found.z(-(high + 1e-4)) <= -z + 1e-2 or high > 99.99


@given(COUNTS, st.floats(0.1, 10))
def test_swapping_the_models_negates(counts: tuple[int, int, int], drop: float) -> None:
    b, c, n = counts
    one, other = Matched(b, c, n), Matched(c, b, n)
    assert one.mean == -other.mean
    low, high = one.interval(1.96)
    assert other.interval(1.96) == pytest.approx((-high, -low), abs=1e-6)
    assert one.z(drop) == pytest.approx(-other.z(-drop), abs=1e-6)


@given(COUNTS, st.floats(0.1, 20))
def test_damage_lowers_the_statistic(counts: tuple[int, int, int], drop: float) -> None:
    b, c, n = counts
    z = Matched(b, c, n).z(drop)
    if b + c < n:
        assert Matched(b, c + 1, n).z(drop) <= z + 1e-9  # what was right is now wrong
    if b:
        assert Matched(b - 1, c, n).z(drop) <= z + 1e-9  # what was won stays wrong


@given(COUNTS)
def test_more_of_the_same_narrows(counts: tuple[int, int, int]) -> None:
    b, c, n = counts
    low, high = Matched(b, c, n).interval(1.96)
    closer_low, closer_high = Matched(4 * b, 4 * c, 4 * n).interval(1.96)
    assert closer_high - closer_low < high - low


def test_without_flips_and_at_the_ends_there_is_an_answer() -> None:
    assert Matched(0, 0, 10).z(0) == 0
    assert Matched(10, 0, 10).interval(1.96)[1] == pytest.approx(100)
    assert Matched(0, 10, 10).interval(1.96)[0] == pytest.approx(-100)
    assert Matched(3, 1, 10).interval(math.inf) == (-100, 100)


def test_the_score_test_keeps_its_level() -> None:
    # At a true drop of the margin, "it lost the margin or more" is refused in 2.5 % of cases, and so is the converse.
    random = np.random.default_rng(0)
    for flips, margin, n in ((0.02, 1.0, 1500), (0.10, 2.0, 800), (0.3, 3.0, 400)):
        share = margin / 100
        lost, won = (flips + share) / 2, (flips - share) / 2
        counts = random.multinomial(n, [won, lost, 1 - won - lost], size=20_000)
        z = np.array([Matched(int(b), int(c), n).z(margin) for b, c, _ in counts])
        assert np.mean(z > 1.96) == pytest.approx(0.025, abs=0.008)
        assert np.mean(z < -1.96) == pytest.approx(0.025, abs=0.008)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_rates_have_wilsons_interval(counts: tuple[int, int]) -> None:
    k, n = counts
    twin = binomtest(k, n).proportion_ci(0.95, method="wilson")
    assert Rate(k, n).interval(norm.isf(0.025)) == pytest.approx((100 * twin.low, 100 * twin.high), abs=1e-9)
    assert Rate(k, n).interval(math.inf) == (0, 100)
