"""Every method that mergekit 0.1.5 has gives what mergekit gives, on random and on real checkpoints."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from cofuse.checkpoint import open_local
from cofuse.cli.app import application
from cofuse.fuse import METHODS

from .cases import CASES, RANDOM, Case
from .compare import LIMITS, WIDER, deviation
from .conftest import Oracle
from .inputs import Inputs, on_zeros
from .report import Report

SETTINGS = [pytest.param(m, case, id=f"{m}-{case.what}") for m, cases in CASES.items() for case in cases]


def fused(recipe: Path, out: Path, *flags: str) -> Path:
    """What our command line makes of the same recipe."""
    application()(["fuse", str(recipe), str(out), *flags], standalone_mode=False)
    return out


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A folder that is gone after the test: pytest keeps its own, and results on real models are large."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def ours(method: str) -> None:
    if method not in METHODS:
        pytest.skip(f"no method {method} yet")


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("kind", ["random", "minilm"])
@pytest.mark.parametrize(("method", "case"), SETTINGS)
def test_gives_what_mergekit_gives(
    method: str,
    case: Case,
    kind: str,
    dtype: str,
    oracle: Oracle,
    made: Callable[[str, str], Inputs],
    report: Report,
    scratch: Path,
) -> None:
    ours(method)
    inputs = made(kind, dtype)
    recipe = case.write(scratch / "recipe.yaml", method, inputs)
    oracle.merge(recipe, scratch / "theirs")
    fused(recipe, scratch / "ours")
    found = deviation(method, case, inputs, scratch / "ours", scratch / "theirs")
    excepted, own = Counter(found.excepted), 0.0
    if found.worst > LIMITS[dtype]:
        # mergekit computes in the inputs' dtype, which may cost it more than the promise allows. Then the promise is about
        # the same recipe computed by mergekit in float64.
        wide = case.write(scratch / "wide.yaml", method, inputs, **WIDER[dtype])
        oracle.merge(wide, scratch / "theirs, wide")
        narrow = found
        found = deviation(method, case, inputs, scratch / "ours", scratch / "theirs, wide", wide=True)
        assert found.worst <= LIMITS[dtype], (
            f"{found.tensor}: {found.worst:.3g} from mergekit in float64 ({found.beyond} entries), "
            f"{narrow.tensor}: {narrow.worst:.3g} from mergekit as it is ({narrow.beyond})"
        )
        excepted = found.excepted + Counter({"mergekit's own rounding": narrow.beyond})
        own = narrow.worst
    report.add(method, kind, dtype, case.what, found.worst, own, found.entries, excepted)


def test_integers_are_copied(oracle: Oracle, scratch: Path) -> None:
    positions = {"model.layers.0.positions": torch.arange(9), "model.layers.0.weight": torch.ones(3, 4)}
    inputs = on_zeros(scratch, "F32", positions)
    recipe = Case("", {}, ({"weight": 0.5},)).write(scratch / "recipe.yaml", "task_arithmetic", inputs)
    oracle.merge(recipe, scratch / "theirs")
    mine, peer = open_local(fused(recipe, scratch / "ours")), open_local(scratch / "theirs")
    for name in positions:
        assert torch.equal(mine.read(name), peer.read(name))


def test_the_table_has_every_method_and_parameter(oracle: Oracle) -> None:
    theirs = oracle.ask(do="methods")["methods"]
    assert set(CASES) == set(theirs)
    for method, parameters in theirs.items():
        cases = (*CASES[method], *RANDOM.get(method, ()))
        given = {name for case in cases for part in (case.parameters, *case.own) for name in part}
        assert given == set(parameters), method


def test_no_method_is_lacking(oracle: Oracle) -> None:
    assert set(oracle.ask(do="methods")["methods"]) - set(METHODS) == set()


@pytest.mark.parametrize("method", CASES)
def test_parameters_have_the_same_names_and_defaults(method: str, oracle: Oracle) -> None:
    ours(method)
    mine = METHODS[method].parameters
    for name, said in oracle.ask(do="methods")["methods"][method].items():
        if name not in mine:
            # Passed over, as in mergekit, which lets task_arithmetic have a density that it has no use for.
            assert any(name in other.parameters for other in METHODS.values()), name
            continue
        assert mine[name].per_model == (said["scope"] != "shared"), name
        if said.get("default") is not None:
            assert mine[name].default == said["default"], name
