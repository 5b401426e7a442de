"""Low rank: nothing of that rank is nearer (Eckart and Young), and the fast way is held to the exact one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cofuse.checkpoint import lowrank
from cofuse.checkpoint.lowrank import EXACT, LowRank, Matrix, leading, within

BEST = 1.001  # what the randomised decomposition may leave, beside the least that can be left


def matrix(rows: int, columns: int, spectrum: str, seed: int = 0) -> Matrix:
    random = np.random.default_rng(seed)
    noise = random.standard_normal((rows, columns)).astype(np.float32)
    if spectrum == "flat":  # the hardest: nothing stands out
        return noise
    if spectrum == "slow":
        u, s, vt = np.linalg.svd(noise, full_matrices=False)
        return ((u / np.sqrt(np.arange(1, len(s) + 1))) @ vt).astype(np.float32)
    spikes = random.standard_normal((rows, 8)) @ random.standard_normal((8, columns))
    return (spikes + 0.1 * noise).astype(np.float32)


def error(of: Matrix, part: LowRank) -> float:
    left = of.astype(np.float64) - (part.u.astype(np.float64) * part.s) @ part.vt.astype(np.float64)
    return float(np.linalg.norm(left) / np.linalg.norm(of.astype(np.float64)))


def tail(of: Matrix, rank: int) -> float:
    squares = np.linalg.svd(of.astype(np.float64), compute_uv=False) ** 2
    return float(np.sqrt(squares[rank:].sum() / squares.sum()))


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 14), st.integers(0, 99))
def test_the_error_is_the_tail_of_the_singular_values(rows: int, columns: int, rank: int, seed: int) -> None:
    of = matrix(rows, columns, "flat", seed)
    part = leading(of, rank)
    assert part.rank == min(rank, rows, columns)
    assert error(of, part) == pytest.approx(tail(of, rank), abs=2e-6)


@pytest.mark.parametrize("spectrum", ["flat", "slow", "spikes"])
@pytest.mark.parametrize("shape", [(300, 420), (420, 300)])
def test_the_randomised_one_is_as_good_as_the_exact_one(shape: tuple[int, int], spectrum: str) -> None:
    of = matrix(*shape, spectrum)
    assert min(shape) > EXACT
    part = leading(of, 8)
    assert error(of, part) <= BEST * tail(of, 8)
    np.testing.assert_allclose(part.u.T @ part.u, np.eye(8), atol=1e-5)
    np.testing.assert_allclose(part.vt @ part.vt.T, np.eye(8), atol=1e-5)
    assert (np.diff(part.s) <= 0).all()


def test_the_randomised_one_gives_the_same_every_time() -> None:
    of = matrix(300, 300, "flat")
    one, two = leading(of, 4), leading(of, 4)
    assert one.u.tobytes() == two.u.tobytes()
    assert one.vt.tobytes() == two.vt.tobytes()


def test_a_rank_it_has_is_found_whole() -> None:
    random = np.random.default_rng(1)
    of = (random.standard_normal((400, 5)) @ random.standard_normal((5, 300))).astype(np.float32)
    assert error(of, leading(of, 5)) < 2e-6


@given(st.integers(1, 12), st.integers(1, 12), st.floats(0.01, 0.99), st.integers(0, 99))
def test_the_least_rank_within_an_error(rows: int, columns: int, limit: float, seed: int) -> None:
    of = matrix(rows, columns, "flat", seed)
    part = within(of, limit, min(rows, columns))
    assert tail(of, part.rank) <= limit + 1e-5
    assert part.rank == 1 or tail(of, part.rank - 1) > limit - 1e-5


def test_within_an_error_for_a_large_one() -> None:
    of = matrix(300, 400, "spikes")
    part = within(of, 0.05, 300)
    assert tail(of, part.rank) <= 0.05 < BEST * tail(of, part.rank - 1)
    assert part.rank == 8


def test_within_an_error_stops_at_the_largest_rank() -> None:
    of = matrix(300, 300, "flat")
    assert within(of, 0.01, 20).rank == 20


def test_a_decomposition_that_fails_is_an_error_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise np.linalg.LinAlgError("SVD did not converge")

    monkeypatch.setattr(np.linalg, "svd", fails)
    with pytest.raises(lowrank.CheckpointError, match="decomposition failed"):
        leading(np.eye(3, dtype=np.float32), 1)
