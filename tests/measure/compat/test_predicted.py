"""The predicted change: sums over chunks against vectors written out, and what a sparse patch reads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cofuse.checkpoint import CHUNK, Checkpoint, Hashed, Memory, TensorSpec, content_id
from cofuse.errors import CheckpointError, TaskError
from cofuse.measure.compat import Predicted, correlate, distances, predict
from cofuse.measure.statistics.record import StatisticsKind, StatisticsRecord, with_record
from cofuse.patch import LowRank, Sparse, Way, apply, make

FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn]
SHAPES = {"a.weight": (5, 7), "a.bias": (5,), "scalar": (), "none": (0, 3)}
Tensors = dict[str, torch.Tensor]


def drawn(seed: int, dtype: torch.dtype = torch.float32, size: float = 1.0) -> Tensors:
    random = torch.Generator().manual_seed(seed)
    return {name: (size * torch.randn(shape, generator=random)).to(dtype) for name, shape in SHAPES.items()}


def fisher_of(base: Checkpoint, tensors: Tensors, kind: StatisticsKind = "fisher") -> Memory:
    return with_record(tensors, StatisticsRecord(kind=kind, model=content_id(base), examples=1))


def drawn_fisher(seed: int, base: Checkpoint) -> Memory:
    random = torch.Generator().manual_seed(seed)
    return fisher_of(base, {name: torch.rand(base.spec(name).shape, generator=random) for name in base.names()})


def slow(base: Checkpoint, changed: Checkpoint, fisher: Checkpoint) -> dict[str, float]:
    """Half the sum, in double precision, of each tensor that changes."""
    found = {}
    for name in fisher.names():
        delta = changed.read(name).double() - base.read(name).double()
        if delta.any():
            found[name] = 0.5 * float((fisher.read(name).double() * delta * delta).sum())
    return found


@given(seed=st.integers(0, 99), before=st.sampled_from(FLOATS), after=st.sampled_from(FLOATS))
def test_it_is_half_the_sum_over_the_values_that_change(seed: int, before: torch.dtype, after: torch.dtype) -> None:
    base, changed = Memory(drawn(seed, before)), Memory(drawn(seed + 1, after))
    fisher = drawn_fisher(seed, base)
    found = predict(base, changed, fisher, threads=2)
    assert dict(found.tensors) == pytest.approx(slow(base, changed, fisher), rel=1e-12)
    assert found.total == pytest.approx(sum(slow(base, changed, fisher).values()), rel=1e-12)
    assert list(found.tensors.values()) == sorted(found.tensors.values(), reverse=True)
    assert found.missing == found.unlike == ()


@given(alpha=st.sampled_from([0.0, -1.0, 0.5, 2.0]), seed=st.integers(0, 20))
def test_it_grows_with_the_square_of_the_change_and_in_proportion_to_the_statistics(alpha: float, seed: int) -> None:
    start, end = drawn(seed, torch.float64), drawn(seed + 1, torch.float64)
    base = Memory(start)
    fisher = drawn_fisher(seed, base)
    scaled = Memory({n: start[n] + alpha * (end[n] - start[n]) for n in start})
    twice = fisher_of(base, {n: 2 * fisher.read(n) for n in fisher.names()})
    once = predict(base, Memory(end), fisher).total
    assert predict(base, scaled, fisher).total == pytest.approx(alpha**2 * once, rel=1e-9)
    assert predict(base, Memory(end), twice).total == pytest.approx(2 * once, rel=1e-12)


@pytest.fixture(scope="module")
def large() -> tuple[Memory, Memory, Memory]:
    """Tensors of several chunks: a little over 9 MiB each."""
    random = torch.Generator().manual_seed(0)
    base = {name: torch.randn(2_400, 1_000, generator=random) for name in ("w", "v")}
    changed = {name: t + 0.01 * torch.randn(t.shape, generator=random) for name, t in base.items()}
    assert base["w"].nbytes > 2 * CHUNK
    return Memory(base), Memory(changed), drawn_fisher(1, Memory(base))


def test_threads_change_not_a_bit(large: tuple[Memory, Memory, Memory]) -> None:
    base, changed, fisher = large
    one, *others = [predict(base, changed, fisher, threads=n).tensors for n in (1, 2, 7)]
    assert all(list(other.items()) == list(one.items()) for other in others)  # equal, not close
    assert dict(one) == pytest.approx(slow(base, changed, fisher), rel=1e-12)


@pytest.mark.parametrize(
    "way", [Way(), Sparse(0.01), Sparse(0.5, "random"), Sparse(1.0, "names", globs=("w",)), LowRank(rank=2)]
)
def test_a_patch_is_predicted_as_what_it_gives(way: Way, large: tuple[Memory, Memory, Memory], tmp_path: Path) -> None:
    base, changed, fisher = large
    applied = apply(base, make(base, changed, tmp_path / "x.patch", way))
    written = Memory({name: applied.read(name) for name in applied.names()})
    found = predict(base, applied, fisher)
    assert dict(found.tensors) == dict(predict(base, written, fisher).tensors)  # to the last bit
    assert dict(found.tensors) == pytest.approx(slow(base, written, fisher), rel=1e-12)


class Watched(Checkpoint):
    """Another checkpoint, and how many bytes were read of it."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.inside, self.read_so_far, self.most = checkpoint, 0, 0
        self._metadata, self._files = checkpoint.metadata, checkpoint.files

    def names(self) -> tuple[str, ...]:
        return self.inside.names()

    def spec(self, name: str) -> TensorSpec:
        return self.inside.spec(name)

    def read_bytes(self, name: str, start: int = 0, stop: int | None = None) -> bytes | bytearray | memoryview:
        data = self.inside.read_bytes(name, start, stop)
        self.read_so_far += len(data)
        self.most = max(self.most, len(data))
        return data


def test_of_a_patch_to_one_chunk_nothing_else_is_read(large: tuple[Memory, Memory, Memory], tmp_path: Path) -> None:
    base, changed, fisher = large
    edited = {name: base.read(name) for name in base.names()}
    edited["w"][1_200] = changed.read("w")[1_200]  # in the second chunk of the first tensor
    patch = make(base, Memory(edited), tmp_path / "x.patch")
    watched, model = Watched(fisher), Watched(base)
    known = Hashed(model)
    applied = apply(known, patch)
    model.read_so_far = 0  # what its id took
    found = predict(known, applied, watched)
    assert list(found.tensors) == ["w"]
    assert watched.read_so_far <= CHUNK
    assert model.read_so_far <= 2 * CHUNK  # as it was, and as what the patch is put on
    predict(base, changed, watched)
    assert watched.most <= CHUNK


def test_what_has_no_prediction_is_named() -> None:
    base = Memory(
        {"a": torch.zeros(2), "b": torch.zeros(2), "same": torch.ones(2), "n": torch.tensor([1]), "old": torch.ones(1)}
    )
    changed = Memory(
        {"a": torch.ones(2), "b": torch.ones(2), "same": torch.ones(2), "n": torch.tensor([2]), "new": torch.ones(1)}
    )
    fisher = fisher_of(base, {"a": torch.ones(2)})
    assert predict(base, changed, fisher) == Predicted({"a": 1.0}, missing=("b",), unlike=("n", "new", "old"))
    assert predict(base, base, fisher) == Predicted({})


@pytest.mark.parametrize(
    ("fisher", "reason"),
    [
        ({"a": torch.tensor([1.0, -1.0])}, "not negative"),
        ({"a": torch.tensor([1.0, float("nan")])}, "not finite"),
        ({"a": torch.tensor([1.0, float("inf")])}, "not finite"),
        ({"a": torch.ones(3)}, "does not fit the model"),
        ({"a": torch.tensor([1, 2])}, "does not fit the model"),
    ],
)
def test_a_wrong_fisher_is_an_error(fisher: Tensors, reason: str) -> None:
    base, changed = Memory({"a": torch.zeros(2)}), Memory({"a": torch.ones(2)})
    with pytest.raises(CheckpointError, match=reason) as wrong:
        predict(base, changed, fisher_of(base, fisher))
    assert str(wrong.value.where).split(": ")[1].startswith("a")


def test_a_fisher_of_another_model_is_an_error_unless_it_is_meant() -> None:
    base, changed = Memory({"a": torch.zeros(2)}), Memory({"a": torch.ones(2)})
    others = fisher_of(changed, {"a": torch.ones(2)})
    with pytest.raises(TaskError, match="belong to another model"):
        predict(base, changed, others)
    assert predict(base, changed, others, anywhere=True).total == 1.0
    with pytest.raises(TaskError, match="not statistics"):
        predict(base, changed, changed)
    with pytest.raises(TaskError, match="statistics of another kind"):
        predict(base, changed, fisher_of(base, {"a": torch.ones(2)}, "gram"))


def test_a_value_that_is_not_finite_is_an_error() -> None:
    base, changed = Memory({"a": torch.zeros(2)}), Memory({"a": torch.tensor([0.0, float("nan")])})
    with pytest.raises(CheckpointError, match="not finite") as wrong:
        predict(base, changed, fisher_of(base, {"a": torch.ones(2)}))
    assert "a" in str(wrong.value.where)


def test_predicting_imports_no_torch() -> None:
    code = "import sys, cofuse.measure.compat; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=os.environ, check=False).returncode == 0


# Many of them


@given(seed=st.integers(0, 50), factor=st.sampled_from([0.1, 1.0, 30.0]))
def test_the_correlation_of_a_multiple_is_one(seed: int, factor: float) -> None:
    x = np.exp(np.random.default_rng(seed).normal(size=20))
    found = correlate(x, factor * x)
    assert (found.pearson, found.spearman, found.slope) == (1.0, 1.0, 1.0)
    assert found.ratio == pytest.approx(factor, rel=1e-9)
    assert found.spread == pytest.approx(0, abs=1e-9)
    assert correlate(x, x**2).slope == pytest.approx(2)


def test_a_correlation_is_that_of_scipy() -> None:
    from scipy import stats

    random = np.random.default_rng(0)
    x, y = np.exp(random.normal(size=(2, 30)))
    found = correlate(x, y)
    assert found.pearson == pytest.approx(stats.pearsonr(np.log(x), np.log(y)).statistic)
    assert found.spearman == pytest.approx(stats.spearmanr(x, y).statistic)
    assert found.slope == pytest.approx(stats.linregress(np.log(x), np.log(y)).slope)


@pytest.mark.parametrize(
    "pair", [([1.0], [1.0]), ([1.0, 2.0], [1.0]), ([0.0, 1.0], [1.0, 1.0]), ([1.0, np.nan], [1.0, 1.0])]
)
def test_what_cannot_be_correlated_is_refused(pair: tuple[list[float], list[float]]) -> None:
    with pytest.raises(TaskError):
        correlate(*pair)


@given(
    values=st.lists(st.floats(0.5, 2.0), min_size=6, max_size=12),
    odd=st.sampled_from([0.0, 1e-6, 1e6]),
    scale=st.sampled_from([1e-9, 1.0, 1e9]),
)
def test_the_one_that_is_out_of_line_is_found_on_any_scale(values: list[float], odd: float, scale: float) -> None:
    found = distances([scale * value for value in [*values, odd]])
    assert found[-1] == max(found)
    assert found[-1] > 6
    assert found[:-1] == pytest.approx(distances([*values, odd])[:-1], rel=1e-6, abs=1e-6)


def test_few_peers_say_nothing_and_equal_ones_suspect_nobody() -> None:
    assert distances([1.0, 1.0, 1e9]) == [0.0, 0.0, 0.0]
    assert max(distances([1.0, 1.0, 1.0, 1.0, 1.05])) < 1


def test_a_value_that_is_not_finite_is_refused_where_there_are_no_statistics_too() -> None:
    base, changed = (Memory({"w": torch.zeros(2), "v": torch.tensor([x, 0.0])}) for x in (0.0, float("nan")))
    record = StatisticsRecord(kind="fisher", model=content_id(base), examples=1)
    with pytest.raises(CheckpointError, match="not finite") as caught:
        predict(base, changed, with_record({"w": torch.ones(2)}, record))
    assert ": v" in str(caught.value)
