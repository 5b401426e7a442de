"""Methods of one line: passthrough, nearswap, WiSE-FT, the moving average."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cofuse.checkpoint import Checkpoint, Memory
from cofuse.errors import CofuseError
from cofuse.fuse import fuse

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def draw(count: int, dtype: torch.dtype = torch.float32) -> list[Checkpoint]:
    generator = torch.Generator().manual_seed(count)
    start = torch.randn(300, generator=generator)
    return [Memory({"x": (start + 0.1 * torch.randn(300, generator=generator)).to(dtype)}) for _ in range(count)]


def read(model: Checkpoint) -> torch.Tensor:
    return model.read("x").double()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_passthrough_is_the_model(dtype: torch.dtype) -> None:
    (model,) = draw(1, dtype)
    assert torch.equal(fuse("passthrough", [model]).read("x"), model.read("x"))
    got = fuse("passthrough", [model], scale=-0.3).read("x")
    torch.testing.assert_close(got, (-0.3 * read(model)).to(dtype), rtol=torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("method", ["passthrough", "nearswap", "wise_ft", "slerp"])
def test_methods_of_one_model_refuse_two(method: str) -> None:
    base, *models = draw(3)
    settings = {"t": 0.5} if method in {"nearswap", "slerp"} else {}
    with pytest.raises(CofuseError):
        fuse(method, models, base=base, **settings).read("x")


@pytest.mark.parametrize("t", [-1.0, 0.0, 1e-7, 1e-6, 0.05, 10.0])
def test_nearswap(t: float) -> None:
    base, model = draw(2)
    a, b = read(base), read(model)
    weight = (t / (a - b).abs().clamp(min=1e-6)).clamp(0, 1)
    expected = weight * b + (1 - weight) * a
    got = fuse("nearswap", [model], base=base, t=t).read("x")
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=3e-7)
    swapped = weight >= 1
    assert torch.equal(got[swapped], model.read("x")[swapped])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_wise_ft_is_task_arithmetic_of_one_model(alpha: float, dtype: torch.dtype) -> None:
    base, model = draw(2, dtype)
    got = fuse("wise_ft", [model], base=base, alpha=alpha).read("x")
    other = fuse("task_arithmetic", [model], base=base, weights=[alpha]).read("x")
    torch.testing.assert_close(got, other, rtol=torch.finfo(dtype).eps, atol=1e-7)
    if alpha in {0.0, 1.0}:
        assert torch.equal(got, (model if alpha else base).read("x"))


def test_wise_ft_stays_between_its_ends() -> None:
    base, model = draw(2)
    with pytest.raises(CofuseError, match="alpha"):
        fuse("wise_ft", [model], base=base, alpha=1.3)


@pytest.mark.parametrize("with_base", [True, False])
@pytest.mark.parametrize("decay", [0.0, 0.6, 0.9, 1.0])
def test_a_moving_average_weighs_models_by_their_age(decay: float, with_base: bool) -> None:
    base, *models = draw(6)
    start = [base] if with_base else []
    ages = [*start, *models]
    weights = np.array([decay ** (len(ages) - 1 - i) * (1.0 if i == 0 else 1 - decay) for i in range(len(ages))])
    assert weights.sum() == pytest.approx(1)
    expected = sum(w * read(m) for w, m in zip(weights, ages, strict=True))
    got = fuse("ema", models, base=base if with_base else None, decay=decay)
    torch.testing.assert_close(got.read("x").double(), expected, rtol=0, atol=3e-7)
    assert not decay or torch.equal(fuse("ema", [base] * 3, decay=decay).read("x"), base.read("x"))
