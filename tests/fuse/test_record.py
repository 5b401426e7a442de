"""A record says what made a checkpoint, whatever read it, and makes it again."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from cofuse.checkpoint import Checkpoint, Hashed, Memory, Written, content_id, file_id, open_local
from cofuse.errors import FuseError
from cofuse.fuse import Recipe, fuse_recipe
from cofuse.fuse.record import CARD, RECORD, Record, input_record, read_record, recorded
from cofuse.fuse.replay import Verdict, compare, read_through
from cofuse.store import Store

LINEAR: dict[str, Any] = {"merge_method": "linear", "models": [{"model": "a"}, {"model": "b"}]}
RECIPES: dict[str, dict[str, Any]] = {
    "linear": LINEAR,
    "with a base": {
        "merge_method": "task_arithmetic",
        "base_model": "base",
        "models": [{"model": "a", "parameters": {"weight": [0, 1]}}, {"model": "b"}],
        "parameters": {"lambda": 0.5},
        "dtype": "float16",
    },
    "nested": {
        "merge_method": "linear",
        "models": [{"model": LINEAR}, {"model": "base", "parameters": {"weight": 2}}],
        "seed": 7,
    },
    "with a threshold": {
        "merge_method": "ties",
        "base_model": "base",
        "models": [{"model": "a"}, {"model": "b"}],
        "parameters": {"density": 0.3},
    },
    "at random": {
        "merge_method": "dare_linear",
        "base_model": "base",
        "models": [{"model": "a"}, {"model": "b"}],
        "parameters": {"density": 0.3},
        "seed": 3,
    },
}


def model(seed: int, rows: int = 5, **more: torch.Tensor) -> Memory:
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        "layers.0.up.weight": torch.randn((rows, 7), generator=generator),
        "layers.1.up.weight": torch.randn((rows, 7), generator=generator),
        "norm.weight": torch.randn((7,), generator=generator),
        "positions": torch.arange(4),
    }
    files = {"config.json": b'{"model_type": "none"}\n', "README.md": b"the base's own", RECORD: b"the base's own"}
    return Memory({**tensors, **more}, files=files)


def models() -> dict[str, Checkpoint]:
    return {"base": model(0), "a": model(1), "b": model(2)}


def fuse(recipe: Mapping[str, Any], opened: Mapping[str, Checkpoint], out: Path, **options: Any) -> Written:
    """As the command line does it."""
    read = Recipe.model_validate(recipe)
    inputs = {name: Hashed(opened[name]) for name in read.addresses}
    result = Hashed(fuse_recipe(read, inputs), once=True)
    return result.save(out, last=lambda: recorded(read, inputs, result), **options)


def again(folder: Path, opened: Mapping[str, Checkpoint]) -> Verdict:
    there = open_local(folder)
    record = read_record(there)
    recipe = record.read_recipe()
    inputs = {name: Hashed(opened[name]) for name in recipe.addresses}
    made = Hashed(fuse_recipe(recipe, inputs), once=True)
    read_through(made, threads=2)
    return compare(record, inputs, made, there)


@pytest.mark.parametrize("name", RECIPES)
def test_the_record_is_true(name: str, tmp_path: Path) -> None:
    fuse(RECIPES[name], models(), tmp_path / "out")
    out = open_local(tmp_path / "out")
    record = read_record(out)
    assert record.output.content == content_id(out)
    assert record.output.tensors == len(out.names())
    assert record.output.files == {"config.json": file_id(out.files["config.json"])}
    assert [one.address for one in record.inputs] == list(Recipe.model_validate(RECIPES[name]).addresses)
    for one in record.inputs:
        assert one.content == content_id(models()[one.address])
    assert record.seed == RECIPES[name].get("seed", 0)
    assert record.read_recipe() == Recipe.model_validate(RECIPES[name])


@pytest.mark.parametrize("name", RECIPES)
def test_it_makes_the_same_again(name: str, tmp_path: Path) -> None:
    fuse(RECIPES[name], models(), tmp_path / "out")
    verdict = again(tmp_path / "out", models())
    assert verdict.same
    assert (verdict.inputs, verdict.tensors, verdict.files) == ((), (), ())


def test_the_same_fuse_has_the_same_record(tmp_path: Path) -> None:
    fuse(RECIPES["with a threshold"], models(), tmp_path / "one", threads=1)
    fuse(RECIPES["with a threshold"], models(), tmp_path / "eight", threads=8, max_shard_bytes=100)
    first, second = (
        {name: (tmp_path / folder / name).read_bytes() for name in (RECORD, CARD)} for folder in ("one", "eight")
    )
    assert first == second
    assert str(tmp_path).encode() not in first[RECORD] + first[CARD]


def test_it_is_canonical_json(tmp_path: Path) -> None:
    fuse(LINEAR, models(), tmp_path / "out")
    raw = (tmp_path / "out" / RECORD).read_bytes()
    assert raw == json.dumps(json.loads(raw), sort_keys=True, indent=2).encode() + b"\n"
    assert raw == Record.model_validate(json.loads(raw)).encode()


def test_the_base_s_record_and_card_give_way(tmp_path: Path) -> None:
    fuse(RECIPES["with a base"], models(), tmp_path / "out")
    for name in (RECORD, CARD):
        assert b"the base's own" not in (tmp_path / "out" / name).read_bytes()


def test_a_fuse_that_is_not_recorded_has_not_its_base_s_record() -> None:
    fused = fuse_recipe(Recipe.model_validate(RECIPES["with a base"]), models())
    assert set(fused.files) == {"config.json", CARD}


def test_inputs_are_whole_though_only_a_part_went_in(tmp_path: Path) -> None:
    recipe = {
        "merge_method": "passthrough",
        "slices": [
            {"sources": [{"model": "a", "layer_range": [0, 1]}]},
            {"sources": [{"model": "b", "layer_range": [1, 2]}]},
        ],
    }
    fuse(recipe, models(), tmp_path / "out")
    record = read_record(open_local(tmp_path / "out"))
    assert [one.content for one in record.inputs] == [content_id(models()[one.address]) for one in record.inputs]
    # What did not go in may change without changing what comes out: it is said, and is no failure.
    verdict = again(tmp_path / "out", {**models(), "a": model(1, **{"layers.1.up.weight": torch.zeros(5, 7)})})
    assert verdict.same
    assert [changed.address for changed in verdict.inputs] == ["a"]


def test_what_gives_only_names_and_files_has_no_content() -> None:
    base = Hashed(model(0))
    assert base.config == {"model_type": "none"}
    assert base.spec("norm.weight").shape == (7,)
    assert input_record("base", base).content is None


def test_a_changed_input_is_named(tmp_path: Path) -> None:
    fuse(LINEAR, models(), tmp_path / "out")
    other = model(2, **{"norm.weight": torch.zeros(7)})
    verdict = again(tmp_path / "out", {**models(), "b": other})
    assert not verdict.same
    assert not verdict.altered
    assert [changed.address for changed in verdict.inputs] == ["b"]
    assert verdict.inputs[0].found.content == content_id(other)
    assert verdict.tensors == ("norm.weight",)


def test_an_altered_result_is_told_from_a_changed_input(tmp_path: Path) -> None:
    fuse(LINEAR, models(), tmp_path / "out")
    out = open_local(tmp_path / "out")
    tensors = {name: out.read(name) for name in out.names()}
    tensors["norm.weight"] = tensors["norm.weight"] + 1
    Memory(tensors, files=dict(out.files)).save(tmp_path / "out")
    verdict = again(tmp_path / "out", models())
    assert (verdict.altered, verdict.inputs, verdict.tensors) == (True, (), ("norm.weight",))
    assert verdict.content == verdict.recorded != verdict.found


@pytest.mark.parametrize(("name", "differs"), [("config.json", True), ("LICENSE.txt", False)])
def test_files_are_compared_and_later_ones_are_not(name: str, differs: bool, tmp_path: Path) -> None:
    fuse(LINEAR, models(), tmp_path / "out")
    (tmp_path / "out" / name).write_bytes(b"{}")
    verdict = again(tmp_path / "out", models())
    assert verdict.files == ((name,) if differs else ())
    assert verdict.same is not differs


def test_a_record_travels_with_a_commit(tmp_path: Path) -> None:
    fuse(LINEAR, models(), tmp_path / "out")
    store = Store.init(tmp_path / ".cofuse")
    commit = store.commit(tmp_path / "out", message="fused")
    kept = store.checkpoint(commit.tree)
    assert read_record(kept).output.content == commit.content


def test_a_store_s_ids_are_recorded_without_reading(tmp_path: Path) -> None:
    store = Store.init(tmp_path / ".cofuse")
    kept = {name: store.checkpoint(store.commit(m, message=name).tree) for name, m in models().items()}
    fuse(LINEAR, kept, tmp_path / "out")
    assert again(tmp_path / "out", models()).same


def test_no_record() -> None:
    with pytest.raises(FuseError, match="no record"):
        read_record(Memory({"x": torch.ones(1)}))


@pytest.mark.parametrize(
    "raw",
    [b"", b"[]", b"{}", b"[" * 100_000, b'{"record": 2}', b'{"record": 1, "more": 1}'],
    ids=["empty", "list", "nothing", "deep", "another format", "unknown key"],
)
def test_a_damaged_record_is_an_error(raw: bytes) -> None:
    with pytest.raises(FuseError, match="not a record"):
        read_record(Memory({"x": torch.ones(1)}, files={RECORD: raw}))


def test_a_recipe_of_another_version_is_an_error(tmp_path: Path) -> None:
    fuse(LINEAR, models(), tmp_path / "out")
    record = read_record(open_local(tmp_path / "out"))
    other = record.model_copy(update={"recipe": {**record.recipe, "merge_method": "of_tomorrow"}})
    with pytest.raises(FuseError, match="cannot be read"):
        other.read_recipe()


def test_verdicts_are_plain() -> None:
    verdict = Verdict("a", "a", "a", (), (), ("config.json",))
    assert not verdict.same
    assert dataclasses.replace(verdict, files=()).same
