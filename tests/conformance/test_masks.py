"""Random masks and ties, by their laws: on a base of zeros a result shows what was kept, ours and mergekit's alike."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from cofuse.checkpoint import open_local

from .cases import RANDOM, Case
from .conftest import Oracle
from .inputs import Inputs, on_zeros
from .report import Report
from .test_methods import fused, ours

# A right answer stays within so many standard errors (one in two million does not).
ERRORS = 5.0
SEEDS = 24
# mergekit's masks come from torch's generator, as the inputs do: the same seed would draw masks that know the inputs.
FIRST_SEED = 1000
MASKS = [pytest.param(m, case, id=f"{m}-{case.what}") for m, cases in RANDOM.items() for case in cases]
EPSILON = 0.1


def changes() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    shapes = {
        "model.layers.0.matrix": (500, 601),
        "model.layers.0.vector": (5001,),
        "model.layers.0.cube": (40, 30, 50),
    }
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def both(
    method: str, case: Case, inputs: Inputs, oracle: Oracle, folder: Path, seed: int = FIRST_SEED
) -> tuple[Mapping[str, torch.Tensor], Mapping[str, torch.Tensor]]:
    """Our result and mergekit's."""
    folder.mkdir(exist_ok=True)
    recipe = case.write(folder / "recipe.yaml", method, inputs)
    oracle.merge(recipe, folder / "theirs", random_seed=seed)
    fused(recipe, folder / "ours", "--set", f"seed={seed}")
    mine, peer = open_local(folder / "ours"), open_local(folder / "theirs")
    names = [name for name in mine.names() if mine.spec(name).dtype in {"F32", "BF16"}]
    return {n: mine.read(n).double() for n in names}, {n: peer.read(n).double() for n in names}


def expected_keep(method: str, case: Case, change: torch.Tensor) -> torch.Tensor:
    """The probability that each entry is kept: the density; in DELLA from density - eps to density + eps by rank in its row.

    A row is what one index of the first dimension leaves; mergekit ranks along the second dimension.
    """
    density = float(case.parameters["density"])
    if not method.startswith("della"):
        return torch.full_like(change, density, dtype=torch.float64)
    rows = change.abs().double() if change.ndim > 1 else change.abs().double()[None]
    rank = rows.argsort(1).argsort(1).double()
    return (density - EPSILON + 2 * EPSILON * rank / (rows.shape[1] - 1)).reshape(change.shape)


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
@pytest.mark.parametrize(("method", "case"), MASKS)
def test_random_masks_keep_the_same_share_and_scale_the_same(
    method: str, case: Case, dtype: str, oracle: Oracle, report: Report, tmp_path: Path
) -> None:
    ours(method)
    inputs = on_zeros(tmp_path, dtype, changes())
    change = {name: open_local(inputs.tuned[0]).read(name) for name in changes()}
    results = dict(zip(("ours", "mergekit"), both(method, case, inputs, oracle, tmp_path / "out"), strict=True))
    shares = []
    for whose, result in results.items():
        for name, tensor in result.items():
            delta = change[name].double()
            keep = expected_keep(method, case, change[name])
            kept = tensor != 0
            # mergekit's probabilities are in its dtype: in bfloat16 half a unit in the last place off, twice in DELLA.
            rounded = tensor.numel() * 2**-8 if dtype == "BF16" and whose == "mergekit" else 0.0
            # Rate: of all entries, and of each tenth of them by magnitude.
            for part in (torch.ones_like(kept), *tenths(delta)):
                share, count = keep[part], int(part.sum())
                error = math.sqrt(float((share * (1 - share)).sum()))
                slack = ERRORS * error + rounded * count / tensor.numel()
                assert abs(int(kept[part].sum()) - float(share.sum())) <= slack, f"{whose}, {name}"
            # Expectation: with `rescale` (the default) the L1 norm is kept, else the entries are.
            if case.parameters.get("rescale", True):
                close = 1e-5 if dtype == "F32" else 2**-6
                assert float(tensor.abs().sum()) == pytest.approx(float(delta.abs().sum()), rel=close), (
                    f"{whose}, {name}"
                )
            scale = tensor[kept] / delta[kept]
            assert float(scale.max() / scale.min()) == pytest.approx(1.0, rel=1e-5 if dtype == "F32" else 2**-7)
        largest = "model.layers.0.matrix"
        shares.append(f"{whose} {float((result[largest] != 0).double().mean()):.4f}")
    report.notes.append(f"{method}, {case.what}, {dtype}: kept of 300,500 entries: {', '.join(shares)}")


def tenths(delta: torch.Tensor) -> list[torch.Tensor]:
    """Ten masks: entries by magnitude."""
    rank = delta.abs().flatten().argsort().argsort().reshape(delta.shape)
    return [(rank * 10 // delta.numel()) == i for i in range(10)]


@pytest.mark.parametrize("method", RANDOM)
def test_random_masks_have_the_same_expectation(method: str, oracle: Oracle, report: Report, tmp_path: Path) -> None:
    """Several models at once, over many seeds: means of ours and of mergekit's differ as two means of one law do."""
    ours(method)
    generator = torch.Generator().manual_seed(3)
    extra = {"epsilon": EPSILON} if method.startswith("della") else {}
    case = Case("three models", {"density": 0.5, **extra}, ({"weight": 0.5}, {"weight": 0.3}, {"weight": 0.2}))
    paths = []
    for i in range(3):
        found = on_zeros(tmp_path / str(i), "F32", {"model.layers.0.matrix": torch.randn(48, 65, generator=generator)})
        paths.append(found.tuned[0])
    inputs = Inputs("zeros", "F32", tmp_path / "0" / "base", tuple(paths))
    sums: list[list[torch.Tensor]] = [[], []]
    for seed in range(FIRST_SEED, FIRST_SEED + SEEDS):
        for values, result in zip(sums, both(method, case, inputs, oracle, tmp_path / f"s{seed}", seed), strict=True):
            values.append(result["model.layers.0.matrix"])
    mine, peer = (torch.stack(values) for values in sums)
    assert len({values.numpy().tobytes() for values in mine}) == SEEDS  # another seed, another mask
    error = ((mine.var(0) + peer.var(0)) / SEEDS).sqrt()
    assert error.min() > 0
    z = (mine.mean(0) - peer.mean(0)) / error
    # The square of a t statistic with 2 (SEEDS - 1) degrees of freedom has mean n / (n - 2).
    freedom = 2 * (SEEDS - 1)
    squares = float(z.square().mean())
    assert squares == pytest.approx(freedom / (freedom - 2), abs=0.15)
    assert abs(float(z.mean())) <= ERRORS / math.sqrt(z.numel() / 2)
    report.notes.append(f"{method}, three models, {SEEDS} seeds: mean z {float(z.mean()):+.3f}, mean z^2 {squares:.3f}")


TRIMS = {
    "ties": ({"density": 0.37}, lambda n: max(1, int(0.37 * n))),
    "breadcrumbs": ({"density": 0.37, "gamma": 0.2}, lambda n: int(0.37 * n)),
    "breadcrumbs_ties": ({"density": 0.37, "gamma": 0.2}, lambda n: int(0.37 * n)),
}


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
@pytest.mark.parametrize("method", TRIMS)
def test_ties_keep_as_many_and_as_large(
    method: str, dtype: str, oracle: Oracle, report: Report, tmp_path: Path
) -> None:
    """Nine magnitudes in 200,000 entries: which of equals is kept may differ, not how many nor how large."""
    ours(method)
    generator = torch.Generator().manual_seed(4)
    levels = torch.randint(1, 10, (400, 500), generator=generator) * 0.0078125
    signs = torch.randint(0, 2, (400, 500), generator=generator) * 2 - 1
    inputs = on_zeros(tmp_path, dtype, {"model.layers.0.matrix": levels * signs})
    parameters, count = TRIMS[method]
    case = Case("ties", {"weight": 1.0, "normalize": False, **parameters}, ({},))
    mine, peer = (r["model.layers.0.matrix"] for r in both(method, case, inputs, oracle, tmp_path / "out"))
    assert int((mine != 0).sum()) == int((peer != 0).sum()) == count(200_000)
    assert torch.equal(mine.abs().flatten().sort().values, peer.abs().flatten().sort().values)
    differ = mine != peer
    magnitude = torch.maximum(mine.abs(), peer.abs())[differ].unique().tolist()
    assert len(magnitude) <= (1 if method == "ties" else 2)
    report.notes.append(
        f"{method}, nine magnitudes, {dtype}: {count(200_000):,} of 200,000 kept by both; {int(differ.sum()):,} entries "
        f"are kept by one alone, all of {len(magnitude)} magnitude(s)"
    )
