"""Statistics beside the models: which tensors go without, whose they are, and what a record says of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cofuse.checkpoint import Checkpoint, Hashed, Memory, content_id, open_local, save
from cofuse.errors import CofuseError, FuseError
from cofuse.fuse import Recipe, fuse, fuse_recipe, make_plan
from cofuse.fuse.bound import STATISTICS
from cofuse.fuse.record import read_record, recorded
from cofuse.fuse.replay import compare
from cofuse.fuse.slices import PlannedError

NAMES = ("layers.0.w", "layers.1.w", "norm")


def model(seed: int, names: tuple[str, ...] = NAMES) -> Memory:
    generator = torch.Generator().manual_seed(seed)
    return Memory({n: torch.randn((4, 3) if n != "norm" else (3,), generator=generator) for n in names})


def fisher_of(checkpoint: Checkpoint, seed: int, names: tuple[str, ...] = NAMES, content: str | None = None) -> Memory:
    tensors = {n: model(seed, names).read(n).square() for n in names}
    said = {"model": content or content_id(checkpoint)}
    return Memory(tensors, files={STATISTICS: json.dumps(said).encode()}, where=f"fisher {seed}")


A, B, C = model(1), model(2), model(3)
FA, FB, FC = fisher_of(A, 11), fisher_of(B, 12), fisher_of(C, 13)


def recipe(*models: dict[str, Any], **more: Any) -> Recipe:
    return Recipe.model_validate({"merge_method": "fisher", "models": list(models), **more})


PAIR = recipe(
    {"model": "a", "statistics": {"fisher": "fa"}, "parameters": {"weight": 0.7}},
    {"model": "b", "statistics": {"fisher": "fb"}, "parameters": {"weight": 0.3}},
)
OPENED: dict[str, Checkpoint] = {"a": A, "b": B, "fa": FA, "fb": FB}


def test_a_recipe_names_them_beside_the_models() -> None:
    got = fuse_recipe(PAIR, OPENED)
    by_hand = fuse("fisher", [A, B], weights=[0.7, 0.3], statistics={"fisher": [FA, FB]})
    for name in NAMES:
        assert torch.equal(got.read(name), by_hand.read(name))
        assert not torch.allclose(got.read(name), fuse("linear", [A, B], weights=[0.7, 0.3]).read(name))
    assert got.plan.bytes_read == 4 * got.plan.bytes_written
    assert "fisher fa fb" in str(got.plan)


def test_a_tensor_without_them_is_averaged_and_named() -> None:
    partly = fisher_of(B, 12, NAMES[:1])
    got = fuse("fisher", [A, B], weights=[0.7, 0.3], statistics={"fisher": [FA, partly]})
    mean = fuse("linear", [A, B], weights=[0.7, 0.3])
    for name in NAMES[1:]:
        assert torch.equal(got.read(name), mean.read(name))
    assert not torch.allclose(got.read(NAMES[0]), mean.read(NAMES[0]))
    assert "no fisher of 1 for layers.1.w, norm; the mean of the models is taken" in got.plan.notes
    assert "no fisher of 1 for layers.1.w, norm" in str(got.plan)
    # The size of a Fisher is that over what is fused by it.
    fishers = {"fisher": [_only(FA), _only(partly)]}
    alone = fuse("fisher", [_only(A), _only(B)], weights=[0.7, 0.3], statistics=fishers)
    assert torch.equal(got.read(NAMES[0]), alone.read(NAMES[0]))


def _only(checkpoint: Checkpoint) -> Memory:
    return Memory({NAMES[0]: checkpoint.read(NAMES[0])})


def test_a_model_without_them_makes_a_mean_of_everything() -> None:
    for got in (
        fuse("fisher", [A, B, C], statistics={"fisher": [FA, None, FC]}),
        fuse_recipe(
            recipe(
                {"model": "a", "statistics": {"fisher": "fa"}},
                {"model": "b"},
                {"model": "c", "statistics": {"fisher": "fc"}},
            ),
            {**OPENED, "c": C, "fc": FC},
        ),
    ):
        mean = fuse("linear", [A, B, C])
        assert all(torch.equal(got.read(name), mean.read(name)) for name in NAMES)
        (note,) = [note for note in got.plan.notes if "mean" in note]
        assert all(name in note for name in NAMES)


def test_no_model_with_them_was_a_mistake() -> None:
    with pytest.raises(ValueError, match='"fisher", which fisher needs'):
        recipe({"model": "a"}, {"model": "b"})
    with pytest.raises(FuseError, match="which fisher needs"):
        fuse("fisher", [A, B])
    with pytest.raises(FuseError, match="as many statistics as models"):
        fuse("fisher", [A, B], statistics={"fisher": [FA]})
    with pytest.raises(FuseError, match="takes no statistics"):
        fuse("linear", [A, B], statistics={"fisher": [FA, FB]})


@pytest.mark.parametrize(
    ("tensor", "said"), [(torch.ones(3, 4), "another shape"), (torch.ones(4, 3, dtype=torch.int32), "another dtype")]
)
def test_one_that_does_not_fit_is_an_error_with_its_place_in_the_recipe(tensor: torch.Tensor, said: str) -> None:
    wrong = Memory({n: tensor if n == NAMES[1] else FB.read(n) for n in NAMES}, where="theirs")
    with pytest.raises(PlannedError, match=said) as caught:
        fuse_recipe(PAIR, {**OPENED, "fb": wrong})
    assert caught.value.keys == ("models", 1, "statistics", "fisher")
    assert "theirs: layers.1.w" in str(caught.value)


def test_names_of_a_part_are_changed_with_its_models() -> None:
    other = Memory({f"tower.{n}": B.read(n) for n in NAMES})
    theirs = Memory({f"tower.{n}": FB.read(n) for n in NAMES})
    got = fuse_recipe(
        recipe(
            {"model": "a", "statistics": {"fisher": "fa"}, "parameters": {"weight": 0.7}},
            {
                "model": "b",
                "statistics": {"fisher": "fb"},
                "parameters": {"weight": 0.3},
                "prefix": {"from": "tower.", "to": ""},
            },
        ),
        {**OPENED, "b": other, "fb": theirs},
    )
    assert all(torch.equal(got.read(n), fuse_recipe(PAIR, OPENED).read(n)) for n in NAMES)


def test_layers_on_top_of_one_another_take_theirs_along() -> None:
    sources = [
        {"model": "a", "layer_range": [1, 2], "statistics": {"fisher": "fa"}},
        {"model": "b", "layer_range": [0, 1], "statistics": {"fisher": "fb"}},
    ]
    told = {"merge_method": "fisher", "slices": [{"sources": sources}], "parameters": {"normalize_by": "none"}}
    got = fuse_recipe(Recipe.model_validate(told), OPENED)
    fa, fb = FA.read("layers.1.w").double(), FB.read("layers.0.w").double()
    expected = (fa * A.read("layers.1.w").double() + fb * B.read("layers.0.w").double()) / (fa + fb)
    torch.testing.assert_close(got.read("layers.0.w").double(), expected, rtol=1e-6, atol=1e-6)


def test_statistics_of_another_model_are_refused_before_anything_is_read_where_the_id_is_known() -> None:
    known = Hashed(B)
    known.tensor_ids()
    with pytest.raises(FuseError, match="statistics of another model") as caught:
        fuse_recipe(PAIR, {**OPENED, "b": known, "fb": fisher_of(C, 12)})
    assert "fb, given as the fisher of b" in str(caught.value)


@pytest.mark.parametrize("watched", [False, True], ids=["plain", "hashed"])
def test_without_a_record_they_are_refused_before_the_first_value(tmp_path: Path, watched: bool) -> None:
    models: list[Checkpoint] = [Hashed(A), Hashed(B)] if watched else [A, B]
    swapped = fuse("fisher", models, statistics={"fisher": [FB, FA]})
    with pytest.raises(FuseError, match="statistics of another model"):
        swapped.save(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    for name in NAMES * 2:  # the second time as the first
        with pytest.raises(FuseError, match="statistics of another model"):
            swapped.read(name)
    fuse("fisher", models, statistics={"fisher": [FA, FB]}).save(tmp_path / "out")
    with pytest.raises(FuseError, match="statistics of another model"):
        fuse_recipe(PAIR, {**OPENED, "fa": FB, "fb": FA}).save(tmp_path / "other")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_and_else_before_anything_is_written(tmp_path: Path) -> None:
    inputs = {name: Hashed(one) for name, one in {**OPENED, "fb": fisher_of(C, 12)}.items()}
    fused = fuse_recipe(PAIR, inputs)
    assert fused.plan.notes == ()
    result = Hashed(fused, once=True)
    with pytest.raises(FuseError, match="statistics of another model"):
        save(result, tmp_path / "out", last=lambda: recorded(PAIR, inputs, result))
    assert list(tmp_path.iterdir()) == []


def test_statistics_of_another_kind_are_refused() -> None:
    gram = Memory({n: FB.read(n) for n in NAMES}, files={STATISTICS: b'{"kind": "gram"}'})
    with pytest.raises(FuseError, match="another kind"):
        fuse_recipe(PAIR, {**OPENED, "fb": gram})


def test_statistics_that_do_not_say_whose_they_are_are_noted() -> None:
    for silent in ({}, {STATISTICS: b"no json"}, {STATISTICS: b'{"model": 3}'}):
        unbound = Memory({n: FB.read(n) for n in NAMES}, files=silent)
        notes = fuse_recipe(PAIR, {**OPENED, "fb": unbound}).plan.notes
        assert "fb: does not say which model it is the fisher of" in notes


def test_a_record_has_their_ids_and_a_replay_sees_that_they_changed(tmp_path: Path) -> None:
    inputs = {name: Hashed(one) for name, one in OPENED.items()}
    result = Hashed(fuse_recipe(PAIR, inputs), once=True)
    save(result, tmp_path / "out", last=lambda: recorded(PAIR, inputs, result))
    record = read_record(open_local(tmp_path / "out"))
    assert {i.address: i.content for i in record.inputs} == {name: content_id(one) for name, one in OPENED.items()}
    card = (tmp_path / "out" / "README.md").read_text()
    assert all(f"| `{address}` |" in card for address in OPENED)
    assert "from 2 checkpoints and their statistics" in card
    for fisher, same in ((FB, True), (fisher_of(B, 99), False)):
        again_from = {name: Hashed(one) for name, one in {**OPENED, "fb": fisher}.items()}
        again = Hashed(fuse_recipe(record.read_recipe(), again_from), once=True)
        for name in NAMES:
            again.read(name)
        verdict = compare(record, again_from, again, open_local(tmp_path / "out"))
        assert verdict.same == same
        assert [one.address for one in verdict.inputs] == ([] if same else ["fb"])


def test_the_command_line_takes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from cofuse.cli.app import application

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name, one in OPENED.items():
        save(one, tmp_path / name)
    text = json.dumps(PAIR.canonical).replace('"a"', '"./a"').replace('"b"', '"./b"')
    text = text.replace('"fa"', '"./fa"').replace('"fb"', '"./fb"')
    Path("recipe.yaml").write_text(text)
    run = CliRunner().invoke(application("fuse"), ["fuse", "recipe.yaml", "out"], catch_exceptions=False)
    assert run.exit_code == 0, run.output
    assert torch.equal(open_local(tmp_path / "out").read("norm"), fuse_recipe(PAIR, OPENED).read("norm"))
    replayed = CliRunner().invoke(application("replay"), ["replay", "out"], catch_exceptions=False)
    assert replayed.exit_code == 0, replayed.output
    Path("wrong.yaml").write_text(text.replace('"./fa"', '"./nothing"'))
    with pytest.raises(CofuseError, match="nothing"):  # `main` makes one line and a status of it
        CliRunner().invoke(application("fuse"), ["fuse", "wrong.yaml", "out2"], catch_exceptions=False)
    Path("swapped.yaml").write_text(text.replace('"./fa"', '"./fc"').replace('"./fb"', '"./fa"').replace("fc", "fb"))
    with pytest.raises(FuseError, match="statistics of another model"):
        CliRunner().invoke(application("fuse"), ["fuse", "swapped.yaml", "out2"], catch_exceptions=False)
    assert not Path("out2").exists()


@pytest.mark.parametrize("method", ["fisher", "regmean"])
def test_a_merge_of_two_versions_has_none(method: str) -> None:
    from cofuse.store.recipes import recipe_for

    with pytest.raises(FuseError, match="wants statistics"):
        recipe_for(method, {}, 0, ours="a", theirs="b")


def test_rows_that_move_with_their_tokens_have_none() -> None:
    names = ("model.embed_tokens.weight", "layers.0.w")
    opened = {address: model(1, names) for address in PAIR.addresses}
    told = Recipe.model_validate({**PAIR.canonical, "tokenizer_source": "union"})
    assert [t.method for t in make_plan(PAIR, opened).tensors.values()] == ["fisher", "fisher"]
    plan = make_plan(told, opened)
    assert [t.method for t in plan.tensors.values()] == ["linear", "fisher"]
    assert any("model.embed_tokens.weight" in note for note in plan.notes)
