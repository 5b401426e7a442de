"""Regression means: against least squares on the inputs themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cofuse.checkpoint import Checkpoint, Memory
from cofuse.errors import FuseError
from cofuse.fuse import CpuExecutor, Executor, fuse
from cofuse.fuse.execute.torch_device import TorchExecutor

EXECUTORS = [CpuExecutor(1), TorchExecutor("cpu")]
on_both = pytest.mark.parametrize("executor", EXECUTORS, ids=["numpy", "torch"])
INPUTS = [np.random.default_rng(i).normal(size=(40, 6)) * np.arange(1, 7) for i in range(3)]  # [tokens, in]
LAYERS = [np.random.default_rng(10 + i).normal(size=(4, 6)) for i in range(3)]  # [out, in]


def models(*, turned: bool = False) -> list[Checkpoint]:
    return [Memory({"w": torch.tensor(w.T.copy() if turned else w), "b": torch.tensor(w[:, 0].copy())}) for w in LAYERS]


def grams(*, turned: bool = False, scale: float = 1.0) -> list[Checkpoint | None]:
    found: list[Checkpoint | None] = []
    for i, x in enumerate(INPUTS):
        gram = torch.tensor(x.T @ x / len(x)) * (scale if i == 1 else 1.0)
        found.append(Memory({"w": gram.unsqueeze(2) if turned else gram}, where=f"gram {i}"))
    return found


def least_squares(weights: list[float]) -> np.ndarray:
    """The layer nearest to each model's outputs on that model's inputs, by a solver that knows of no Gram matrix."""
    x = np.concatenate([np.sqrt(w) * x for w, x in zip(weights, INPUTS, strict=True)])
    y = np.concatenate([np.sqrt(w) * x @ layer.T for w, x, layer in zip(weights, INPUTS, LAYERS, strict=True)])
    return np.asarray(np.linalg.lstsq(x, y, rcond=None)[0].T)


@on_both
@pytest.mark.parametrize("turned", [False, True], ids=["linear", "conv1d"])
@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [0.2, 1.0, 3.0], [0.0, 1.0, 2.0]])
def test_it_is_the_regression_on_all_models_inputs(executor: Executor, turned: bool, weights: list[float]) -> None:
    got = fuse(
        "regmean",
        models(turned=turned),
        weights=weights,
        statistics={"gram": grams(turned=turned)},
        executor=executor,
        alpha=1.0,
        ridge=0.0,
    ).read("w")
    np.testing.assert_allclose(got.numpy().T if turned else got.numpy(), least_squares(weights), rtol=1e-9, atol=1e-9)


@on_both
def test_without_the_diagonals_company_each_input_is_a_weighted_mean_of_its_own(executor: Executor) -> None:
    got = fuse("regmean", models(), statistics={"gram": grams()}, executor=executor, alpha=0.0, ridge=0.0).read("w")
    energy = np.stack([(x**2).mean(0) for x in INPUTS])  # [models, in]
    expected = (energy[:, None] * np.stack(LAYERS)).sum(0) / energy.sum(0)
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-12)


@on_both
def test_a_large_ridge_is_the_mean(executor: Executor) -> None:
    # Each ridge is a share of its own Gram's mean, which `normalize_by` makes equal.
    got = fuse(
        "regmean", models(), statistics={"gram": grams()}, executor=executor, ridge=1e9, normalize_by="mean"
    ).read("w")
    np.testing.assert_allclose(got.numpy(), np.mean(LAYERS, axis=0), rtol=1e-6)


@on_both
def test_a_gram_times_a_billion_changes_nothing_where_each_is_divided_by_its_size(executor: Executor) -> None:
    found = [
        fuse("regmean", models(), statistics={"gram": grams(scale=s)}, executor=executor, normalize_by="mean").read("w")
        for s in (1.0, 1e9)
    ]
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-9)
    owned = fuse("regmean", models(), statistics={"gram": grams(scale=1e9)}, executor=executor).read("w")
    np.testing.assert_allclose(owned.numpy(), LAYERS[1], rtol=1e-5, atol=1e-5)


@on_both
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_models_that_agree_give_their_very_bits(executor: Executor, dtype: torch.dtype) -> None:
    model = Memory({n: models()[0].read(n).to(dtype) for n in ("w", "b")})
    got = fuse("regmean", [model] * 3, statistics={"gram": grams()}, executor=executor, weights=[0.1, 3.0, 1.0])
    assert bytes(got.read_bytes("w")) == bytes(model.read_bytes("w"))


def test_what_is_no_matrix_or_has_no_gram_is_averaged_and_said() -> None:
    more: list[Checkpoint] = [
        Memory({**{n: m.read(n) for n in m.names()}, "embeddings": m.read("w") * 2}) for m in models()
    ]
    got = fuse("regmean", more, weights=[1, 2, 3], statistics={"gram": grams()})
    mean = fuse("linear", more, weights=[1, 2, 3])
    for name in ("b", "embeddings"):
        assert torch.equal(got.read(name), mean.read(name))
        assert got.plan.tensors[name].method == "linear"
    assert got.plan.notes[:2] == (
        "tensors of these shapes have no gram: b; the mean of the models is taken",
        "no gram of 0, 1, 2 for embeddings; the mean of the models is taken",
    )


@on_both
def test_a_sum_without_an_inverse_is_told(executor: Executor) -> None:
    flat = [Memory({"w": torch.diag(torch.tensor([0.0, 1, 1, 1, 1, 1]).double())}) for _ in range(3)]
    with pytest.raises(FuseError, match="no inverse") as caught:
        fuse("regmean", models(), statistics={"gram": flat}, executor=executor, ridge=0.0).read("w")
    assert "w" in str(caught.value.where)
    assert fuse("regmean", models(), statistics={"gram": flat}, executor=executor).read("w").isfinite().all()
    nothing: list[Checkpoint | None] = [Memory({"w": torch.zeros(6, 6).double()})] * 3
    with pytest.raises(FuseError, match="no inverse"):
        fuse("regmean", models(), statistics={"gram": nothing}, executor=executor).read("w")


@on_both
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fewer_tokens_than_inputs_have_no_inverse_either(executor: Executor, dtype: torch.dtype) -> None:
    # Elimination finds no zero pivot here, and gives entries of any size.
    few = [torch.randn(2, 12, generator=torch.Generator().manual_seed(i)).double() for i in range(3)]
    gram = [Memory({"w": (x.T @ x / 2).to(dtype)}) for x in few]
    layers = [Memory({"w": torch.randn(4, 12, generator=torch.Generator().manual_seed(10 + i))}) for i in range(3)]

    def merged(**parameters: float) -> torch.Tensor:
        return fuse("regmean", layers, statistics={"gram": gram}, executor=executor, **parameters).read("w")

    with pytest.raises(FuseError, match="no inverse"):
        merged(alpha=1.0, ridge=0.0)
    most = max(float(layer.read("w").abs().max()) for layer in layers)
    for parameters in ({"alpha": 1.0, "ridge": 1e-3}, {"alpha": 0.9, "ridge": 0.0}):
        assert float(merged(**parameters).abs().max()) < 2 * most


@on_both
def test_a_negative_diagonal_is_told(executor: Executor) -> None:
    wrong: list[Checkpoint | None] = [*grams()[:2], Memory({"w": -torch.eye(6).double()})]
    with pytest.raises(FuseError, match="negative diagonal"):
        fuse("regmean", models(), statistics={"gram": wrong}, executor=executor).read("w")
