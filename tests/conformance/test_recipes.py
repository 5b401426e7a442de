"""The recipes in examples/recipes, of the kinds found in model cards, run by mergekit and by us: the same model comes out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from fuse.llama import FAMILY, family

from cofuse import address
from cofuse.checkpoint import open_local
from cofuse.fuse import fuse_recipe, read_recipe

from .compare import ulp
from .conftest import Oracle

EXAMPLES = sorted((Path(__file__).parents[2] / "examples/recipes").glob("*.yaml"))
OURS = {"nested", "globs"}  # what mergekit's recipes cannot say
RANDOM = {"dare-ties"}  # masks from another generator: see test_masks.py for their law
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {word: family(tmp_path_factory.mktemp(word), dtype) for word, dtype in DTYPES.items()}


def placed(text: str, folder: Path) -> str:
    """A recipe whose models lie in a folder."""
    for name in FAMILY:
        text = text.replace(f"./{name}", str(folder / name))
    return text


def run(path: Path, out: Path) -> None:
    recipe = read_recipe(path)
    fuse_recipe(recipe, {name: address.open(name) for name in recipe.addresses}).save(out)


def same(ours: Path, theirs: Path, *, exact: bool = True) -> None:
    mine, peer = open_local(ours), open_local(theirs)
    assert {*mine.names(), *mine.aliases} == {*peer.names()}
    rows = _rows(ours, theirs)
    for name in peer.names():
        got, wanted = mine.read(name), peer.read(name)
        assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape), name
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            got, wanted = got[rows], wanted[: len(rows)]  # rows behind those pad the vocabulary
        apart = (got.double() - wanted.double()).abs()
        if not exact:
            assert apart.norm() <= wanted.double().norm(), name
        elif got.dtype == torch.bfloat16:
            largest = torch.maximum(got.abs().max(), wanted.abs().max())
            assert bool((apart <= ulp(largest, torch.bfloat16)).all()), name
        else:
            assert apart.norm() <= 1e-6 * wanted.double().norm(), name
    for key in ("num_hidden_layers", "vocab_size", "hidden_size"):
        assert mine.config[key] == peer.config[key], key
    assert len({config.get("dtype", config.get("torch_dtype")) for config in (mine.config, peer.config)}) == 1


def _rows(ours: Path, theirs: Path) -> list[int]:
    """Where in ours each of their tokens stands: in a union, mergekit numbers them anew in each run, by a hash table."""
    mine, peer = _ids(ours), _ids(theirs)
    assert mine.keys() == peer.keys()
    assert {*mine.values()} == {*peer.values()} == {*range(len(mine))}
    return [mine[word] for word in sorted(peer, key=lambda word: peer[word])]


def _ids(folder: Path) -> dict[str, int]:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    return {**tokenizer["model"]["vocab"], **{t["content"]: t["id"] for t in tokenizer["added_tokens"]}}


@pytest.mark.parametrize("path", [p for p in EXAMPLES if p.stem not in OURS], ids=lambda p: p.stem)
def test_an_example_gives_what_mergekit_gives(
    path: Path, families: dict[str, Path], oracle: Oracle, tmp_path: Path
) -> None:
    # mergekit rounds its inputs to the recipe's dtype: models of that dtype have nothing to round.
    word = read_recipe(path).dtype or "float32"
    (tmp_path / "r.yaml").write_text(placed(path.read_text(), families[word]))
    run(tmp_path / "r.yaml", tmp_path / "ours")
    oracle.merge(tmp_path / "r.yaml", tmp_path / "theirs", copy_tokenizer=True)
    same(tmp_path / "ours", tmp_path / "theirs", exact=path.stem not in RANDOM)


def test_a_recipe_inside_a_recipe_gives_what_mergekit_gives_in_two_steps(
    families: dict[str, Path], oracle: Oracle, tmp_path: Path
) -> None:
    path = next(p for p in EXAMPLES if p.stem == "nested")
    (tmp_path / "nested.yaml").write_text(placed(path.read_text(), families["float32"]))
    run(tmp_path / "nested.yaml", tmp_path / "ours")
    outer: dict[str, Any] = yaml.safe_load((tmp_path / "nested.yaml").read_text())
    (tmp_path / "inner.yaml").write_text(yaml.safe_dump(outer["models"][0]["model"]))
    oracle.merge(tmp_path / "inner.yaml", tmp_path / "between", copy_tokenizer=True)
    outer["models"][0]["model"] = str(tmp_path / "between")
    (tmp_path / "outer.yaml").write_text(yaml.safe_dump(outer))
    oracle.merge(tmp_path / "outer.yaml", tmp_path / "theirs", copy_tokenizer=True)
    same(tmp_path / "ours", tmp_path / "theirs")
