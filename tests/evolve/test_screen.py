"""What is offered is checked; what is refused is said, and changes nothing."""

from __future__ import annotations

import dataclasses
import json
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cofuse.checkpoint import CHUNK, Checkpoint, Memory, content_id, open_local, tensor_id
from cofuse.errors import CheckpointError, StudyError, TaskError
from cofuse.evolve import read_records
from cofuse.evolve.records import Accepted, by_kind
from cofuse.evolve.screen import Offer, Peers, finite_ids, screen
from cofuse.evolve.work import Contribute, Work
from cofuse.measure.statistics.record import StatisticsRecord, with_record
from cofuse.store import Store

from . import tiny

Tensors = dict[str, torch.Tensor]


def changed(base: Path, folder: Path, change: Callable[[Tensors], None]) -> Path:
    """A contribution: the base, a little moved, and then changed."""
    opened = open_local(base)
    tensors = {name: opened.read(name) + 0.001 for name in opened.names()}
    change(tensors)
    Memory(tensors, files=opened.files).save(folder)
    return folder


class _Malice:
    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return open, (self.path, "w")


def truncated(base: Path, folder: Path) -> None:
    changed(base, folder, lambda tensors: None)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


def malicious(base: Path, folder: Path) -> None:
    folder.mkdir()
    with open(folder / "pytorch_model.bin", "wb") as file:
        pickle.dump({"w": _Malice(folder / "it-ran")}, file)


def pickled(base: Path, folder: Path) -> None:
    folder.mkdir()
    opened = open_local(base)
    torch.save({name: opened.read(name) for name in opened.names()}, folder / "pytorch_model.bin")


def not_finite(base: Path, folder: Path) -> None:
    changed(base, folder, lambda t: t[NORM].__setitem__(3, float("inf")))


def misshapen(base: Path, folder: Path) -> None:
    changed(base, folder, lambda t: t.update({NORM: torch.zeros(17)}))


def missing(base: Path, folder: Path) -> None:
    changed(base, folder, lambda t: t.pop(NORM))


def of_halves(base: Path, folder: Path) -> None:
    changed(base, folder, lambda t: t.update({n: x.half() for n, x in t.items()}))


def nothing(base: Path, folder: Path) -> None:
    folder.mkdir()


def nowhere(base: Path, folder: Path) -> None:
    pass


def another_model(base: Path, folder: Path) -> None:
    Memory({"some.weight": torch.zeros(3)}).save(folder)


NORM = "layernorm.weight"
BAD: Mapping[str, tuple[Callable[[Path, Path], None], str]] = {
    "truncated": (truncated, "model.safetensors"),
    "malicious": (malicious, "pickled contributions are refused"),
    "pickled": (pickled, "pickled contributions are refused"),
    "not-finite": (not_finite, f"not finite, in {{folder}}/model.safetensors: {NORM}, got inf at element 3"),
    "misshapen": (
        misshapen,
        f"another shape than the base's, in {{folder}}/model.safetensors: {NORM}, got [17], expected [16]",
    ),
    "missing": (missing, f"a tensor is missing, in {{folder}}, got no {NORM}"),
    "halves": (of_halves, "another dtype"),
    "nothing": (nothing, "no weights in the folder"),
    "nowhere": (nowhere, "no such file or folder"),
    "another-model": (another_model, "most of the base is missing"),
}


@pytest.mark.parametrize("kind", BAD)
def test_each_bad_offer_is_refused_with_its_reason(base: Path, tmp_path: Path, kind: str) -> None:
    make, reason = BAD[kind]
    folder = tmp_path / kind
    make(base, folder)
    good = changed(base, tmp_path / "good", lambda tensors: None)
    screened = screen([Offer("bad", folder), Offer("good", good)], open_local(base))
    assert [a.who for a in screened.accepted] == ["good"]
    ((who, said),) = [(r.who, r.reason) for r in screened.refused]
    assert who == "bad"
    assert reason.format(folder=kind) in said
    assert str(tmp_path) not in said  # a record tells nobody's paths
    assert "\n" not in said
    assert not (folder / "it-ran").exists()


def test_the_same_weights_count_once(base: Path, tmp_path: Path) -> None:
    one, two = (changed(base, tmp_path / name, lambda tensors: None) for name in ("one", "two"))
    screened = screen([Offer("one", one), Offer("two", two)], open_local(base))
    assert [a.who for a in screened.accepted] == ["one"]
    assert "offered twice" in screened.refused[0].reason


def test_refused_offers_change_nothing(whole: Path, base: Path, tmp_path: Path) -> None:
    for kind, (make, _) in BAD.items():
        make(base, tmp_path / "offers" / kind) if kind != "nothing" else (tmp_path / "offers" / kind).mkdir(
            parents=True
        )
    offers = {1: [f"offers/{kind}" for kind in BAD]}
    study = tiny.write(tmp_path / "study.yaml", **tiny.ROUNDS, offers=offers)
    told = tiny.Told()
    tiny.go(study, tmp_path / "run", progress=told)
    assert tiny.trees(tmp_path / "run")["seed-0"] == tiny.trees(whole / "run")["seed-0"]
    first, second = by_kind(read_records(tmp_path / "run" / "records.jsonl"), "round")
    assert {r.who for r in first.refused} == {f"offer {kind}" for kind in BAD}
    assert second.refused == ()
    assert [a.who for a in first.accepted] == ["even-0", "least-1", "prime-2"]
    assert told.lines == [f"seed 0, round 1: refused {r.who}: {r.reason}" for r in first.refused]
    (_, commit, _) = Store.open(tmp_path / "run").log("seed-0")
    assert commit.record["refused"] == [r.who for r in first.refused]


def test_good_offers_are_fused(whole: Path, base: Path, tmp_path: Path) -> None:
    mine = changed(base, tmp_path / "mine", lambda tensors: None)
    tiny.copy(mine, tmp_path / "copied")
    study = tiny.write(
        tmp_path / "study.yaml", **tiny.ROUNDS, rounds=1, keep_contributions=True, offers={1: ["mine", "copied"]}
    )
    tiny.go(study, tmp_path / "run")
    (made,) = by_kind(read_records(tmp_path / "run" / "records.jsonl"), "round")
    assert [a.who for a in made.accepted] == ["even-0", "least-1", "prime-2", "offer mine"]
    assert [(r.who, r.reason) for r in made.refused] == [
        ("offer copied", "the same weights were offered twice, in copied")
    ]
    places = [tmp_path / "run" / "contributions" / "seed-0" / "round-1" / a.who for a in made.accepted[:3]] + [mine]
    result = Store.open(tmp_path / "run").checkpoint("seed-0")
    for name in result.names():
        mean = torch.stack([open_local(p).read(name).double() for p in places]).mean(0)
        assert torch.allclose(result.read(name).double(), mean, atol=1e-6)


class Spoiling(tiny.Here):
    """Workers whose disk damages what they write."""

    spoiled: tuple[str, ...] = ("even-0", "least-1", "prime-2")

    def do(self, work: Work) -> dict[str, Any]:
        result = super().do(work)
        folder = getattr(work, "folder", None)
        if folder is not None and folder.name in self.spoiled:
            file = folder / "model.safetensors"
            file.write_bytes(file.read_bytes()[:-1])
        return result


class SpoilingOne(Spoiling):
    spoiled = ("least-1",)


def test_a_round_without_any_contribution_ends_the_run(tmp_path: Path) -> None:
    study = tiny.write(tmp_path / "study.yaml", **tiny.ROUNDS)
    with pytest.raises(StudyError, match="no contribution could be fused") as ended:
        tiny.go(study, tmp_path / "run", workers=Spoiling)
    assert ended.value.where == "seed 0, round 1"
    assert "even-0: " in str(ended.value.got)
    assert "seed-0" not in tiny.trees(tmp_path / "run")


def test_a_round_goes_on_without_a_damaged_contribution(tmp_path: Path) -> None:
    study = tiny.write(tmp_path / "study.yaml", **tiny.ROUNDS, rounds=1)
    tiny.go(study, tmp_path / "run", workers=SpoilingOne)
    (made,) = by_kind(read_records(tmp_path / "run" / "records.jsonl"), "round")
    assert [a.who for a in made.accepted] == ["even-0", "prime-2"]
    assert [r.who for r in made.refused] == ["least-1"]


class DivergingOne(tiny.Here):
    """One contributor's learning rate is far too high."""

    def do(self, work: Work) -> dict[str, Any]:
        if isinstance(work, Contribute) and work.folder.name == "least-1":
            work = dataclasses.replace(work, settings=work.settings.model_copy(update={"learning_rate": 1e30}))
        return super().do(work)


def test_a_round_goes_on_without_a_contributor_that_diverged(tmp_path: Path) -> None:
    study = tiny.write(tmp_path / "study.yaml", **tiny.ROUNDS, rounds=1)
    tiny.go(study, tmp_path / "run", workers=DivergingOne)
    (made,) = by_kind(read_records(tmp_path / "run" / "records.jsonl"), "round")
    assert [a.who for a in made.accepted] == ["even-0", "prime-2"]
    assert [r.who for r in made.refused] == ["least-1"]
    assert "diverged" in made.refused[0].reason


def slow(base: Tensors, bodies: list[Tensors]) -> list[tuple[float, float]]:
    """Norm and cosine of each change, from vectors written out."""

    def flat(tensors: Tensors) -> Any:
        floats = [tensors[n].double().flatten().numpy() for n in sorted(tensors) if tensors[n].is_floating_point()]
        return np.concatenate(floats)

    start = flat(base)
    changes = [flat(b) - start for b in bodies]
    found = []
    for i, mine in enumerate(changes):
        others = [c for j, c in enumerate(changes) if j != i]
        mean = np.mean(others, axis=0) if others else np.zeros_like(mine)
        size = np.linalg.norm(mine) * np.linalg.norm(mean)
        found.append((float(np.linalg.norm(mine) / np.linalg.norm(start)), float(mine @ mean / size) if size else 0.0))
    return found


def folder_of(tensors: Tensors, folder: Path) -> Path:
    Memory(tensors).save(folder)
    return folder


def measured(base: Tensors, bodies: list[Tensors], folder: Path) -> tuple[Accepted, ...]:
    offers = [Offer(str(i), folder_of(b, folder / str(i))) for i, b in enumerate(bodies)]
    screened = screen(offers, Memory(base))
    assert not screened.refused
    return screened.accepted


@given(seed=st.integers(0, 99), count=st.integers(1, 5), dtype=st.sampled_from([torch.float32, torch.float16]))
def test_norms_and_cosines_are_those_of_the_whole_vectors(
    seed: int, count: int, dtype: torch.dtype, tmp_path_factory: pytest.TempPathFactory
) -> None:
    random = torch.Generator().manual_seed(seed)

    def tensors() -> Tensors:
        floats = {n: torch.randn(s, generator=random).to(dtype) for n, s in {"a": (3, 40), "b": (7,), "c": ()}.items()}
        return {**floats, "count": torch.tensor([1, 2])}

    base, bodies = tensors(), [tensors() for _ in range(count)]
    got = measured(base, bodies, tmp_path_factory.mktemp("bodies"))
    for found, (norm, cosine) in zip(got, slow(base, bodies), strict=True):
        assert found.norm == pytest.approx(norm, abs=2e-6)
        assert found.cosine == pytest.approx(cosine, abs=1e-4)


def test_changes_of_several_blocks_are_measured_whole(tmp_path: Path) -> None:
    random = torch.Generator().manual_seed(0)
    base, *bodies = [{"w": torch.randn(1100, 1000, generator=random)} for _ in range(4)]
    assert base["w"].nbytes > CHUNK
    for found, (norm, cosine) in zip(measured(base, bodies, tmp_path), slow(base, bodies), strict=True):
        assert found.norm == pytest.approx(norm, abs=2e-6)
        assert found.cosine == pytest.approx(cosine, abs=1e-4)


def test_tensors_that_stayed_as_they_are_count_as_unchanged(tmp_path: Path) -> None:
    # Against a base in a store, whose tensors have ids already: those with the base's are not read.
    random = torch.Generator().manual_seed(1)
    base = {name: torch.randn(40, 30, generator=random) for name in "abc"}
    bodies = [{n: t + 0.1 * torch.randn(t.shape, generator=random) for n, t in base.items()} for _ in range(3)]
    bodies[0]["a"] = bodies[1]["a"] = base["a"]
    for body in bodies:
        body["b"] = base["b"]
    store = Store.init(tmp_path / "store")
    stored = store.checkpoint(store.commit(Memory(base), message="base", branch="base").tree)
    offers = [Offer(str(i), folder_of(b, tmp_path / str(i))) for i, b in enumerate(bodies)]
    screened = screen(offers, stored)
    assert not screened.refused
    for found, (norm, cosine) in zip(screened.accepted, slow(base, bodies), strict=True):
        assert found.norm == pytest.approx(norm, abs=2e-6)
        assert found.cosine == pytest.approx(cosine, abs=1e-4)


FLOAT_DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2]


@given(
    seed=st.integers(0, 999),
    dtype=st.sampled_from(FLOAT_DTYPES),
    wrong=st.sampled_from([None, float("nan"), float("inf"), -float("inf")]),
    large=st.booleans(),
    length=st.sampled_from([1, 7, 3000]),
)
def test_what_is_not_finite_is_found_and_what_is_huge_is_not(
    seed: int, dtype: torch.dtype, wrong: float | None, large: bool, length: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    values = torch.randn(length, generator=random, dtype=torch.float64).sign()
    values *= torch.finfo(dtype).max if large else 1.0
    if wrong is not None:
        values[seed % length] = wrong
        values[min(length - 1, seed % length + 3)] = -wrong  # an infinity less an infinity
    tensor = values.to(dtype)
    checkpoint = Memory({"count": torch.arange(5), "w": tensor, "empty": torch.empty(0, 3), "one": torch.tensor(1.0)})
    places = (~tensor.double().isfinite()).nonzero().flatten().tolist()  # the slow twin
    if places:
        with pytest.raises(CheckpointError, match="not finite") as refused:
            finite_ids(checkpoint)
        assert str(refused.value.got).endswith(f" at element {places[0]}")
    else:
        assert finite_ids(checkpoint) == {name: tensor_id(checkpoint, name) for name in checkpoint.names()}


def test_a_huge_change_is_measured_and_its_record_can_be_read(tmp_path: Path) -> None:
    base = {"w": torch.ones(8)}
    bodies = [{"w": torch.full((8,), 3e38)}, {"w": torch.full((8,), 1.5)}]
    got = measured(base, bodies, tmp_path)
    assert got[0].norm == pytest.approx(3e38, rel=1e-5)
    assert [a.cosine for a in got] == [1.0, 1.0]
    assert all(Accepted.model_validate_json(a.model_dump_json()) == a for a in got)


def test_a_classifier_of_transformers_is_taken(tmp_path: Path) -> None:
    from transformers import BertConfig, BertForSequenceClassification, BertModel

    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, num_labels=3
    )
    torch.manual_seed(0)
    BertModel(config).save_pretrained(tmp_path / "base")
    classifier = BertForSequenceClassification(config)
    classifier.bert.load_state_dict(BertModel.from_pretrained(tmp_path / "base").state_dict())
    with torch.no_grad():
        for parameter in classifier.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape))
    classifier.save_pretrained(tmp_path / "tuned")
    assert json.loads((tmp_path / "tuned" / "config.json").read_text())["architectures"] == [type(classifier).__name__]

    base = open_local(tmp_path / "base")
    screened = screen([Offer("them", tmp_path / "tuned")], base)
    assert screened.refused == ()
    (mine,) = screened.bodies
    state = classifier.bert.state_dict()
    assert mine.names() == base.names()
    assert all(torch.equal(mine.read(name), state[name]) for name in mine.names())
    assert screened.accepted[0].content == content_id(mine)
    assert screened.accepted[0].norm > 0


# Peers


def fisher_of(base: Checkpoint, folder: Path, tensors: Tensors | None = None) -> Path:
    """Statistics of a base: every value matters alike."""
    ones = {n: torch.ones(base.spec(n).shape) for n in base.names()} if tensors is None else tensors
    with_record(ones, StatisticsRecord(kind="fisher", model=content_id(base), examples=1)).save(folder)
    return folder


def several(base: Path, folder: Path, sizes: Mapping[str, float]) -> list[Offer]:
    """Contributions whose changes are of these sizes."""
    opened = open_local(base)
    offers = []
    for i, (who, size) in enumerate(sizes.items()):
        random = torch.Generator().manual_seed(i)
        moved = {n: opened.read(n) + size * torch.randn(opened.spec(n).shape, generator=random) for n in opened.names()}
        Memory(moved, files=opened.files).save(folder / who)
        offers.append(Offer(who, folder / who))
    return offers


ALIKE = {"ada": 0.010, "bob": 0.012, "cyd": 0.009, "dan": 0.011}


@pytest.mark.parametrize(("odd", "out"), [(10.0, True), (0.0001, True), (0.013, False)])
def test_a_change_out_of_line_with_its_peers_is_refused(base: Path, tmp_path: Path, odd: float, out: bool) -> None:
    offers = several(base, tmp_path, {**ALIKE, "eve": odd})
    opened = open_local(base)
    peers = Peers(open_local(fisher_of(opened, tmp_path / "F")), threshold=6.0)
    screened = screen(offers, opened, peers)
    assert [r.who for r in screened.refused] == (["eve"] if out else [])
    assert [a.who for a in screened.accepted] == ([*ALIKE] if out else [*ALIKE, "eve"])
    assert len(screened.bodies) == len(screened.accepted)
    for accepted, offer in zip(screened.accepted, offers, strict=False):
        moved = open_local(offer.folder)
        changes = [moved.read(n).double() - opened.read(n).double() for n in opened.names()]
        assert accepted.predicted == pytest.approx(0.5 * sum(float(c.square().sum()) for c in changes), rel=1e-9)
    if out:
        assert "out of line with the round's others, in eve" in screened.refused[0].reason
        assert str(tmp_path) not in screened.refused[0].reason
        # What is refused does not bend what is measured of the others.
        alone = screen(offers[:-1], opened, peers)
        assert alone.accepted == screened.accepted


def test_a_higher_threshold_lets_more_in(base: Path, tmp_path: Path) -> None:
    offers = several(base, tmp_path, {**ALIKE, "eve": 1.0})
    opened = open_local(base)
    fisher = open_local(fisher_of(opened, tmp_path / "F"))
    counts = [len(screen(offers, opened, Peers(fisher, t)).refused) for t in (0.01, 6.0, 1e6)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[1] == 1 > counts[2] == 0


def test_without_statistics_nothing_is_predicted_and_records_are_as_before(base: Path, tmp_path: Path) -> None:
    screened = screen(several(base, tmp_path, {**ALIKE, "eve": 10.0}), open_local(base))
    assert not screened.refused
    assert all(set(a.model_dump()) == {"who", "content", "norm", "cosine"} for a in screened.accepted)
    assert all(Accepted.model_validate_json(a.model_dump_json()) == a for a in screened.accepted)


def test_a_study_screens_by_the_statistics_of_its_base(whole: Path, base: Path, tmp_path: Path) -> None:
    started = Store.open(whole / "run").checkpoint("base")
    fisher_of(started, tmp_path / "F")
    folders = several(base, tmp_path, {"eve": 100.0})
    study = tiny.write(
        tmp_path / "study.yaml", **tiny.ROUNDS, offers={1: ["eve"]}, screen={"fisher": "F"}, keep_contributions=True
    )
    told = tiny.Told()
    tiny.go(study, tmp_path / "run", progress=told)
    first, second = by_kind(read_records(tmp_path / "run" / "records.jsonl"), "round")
    assert [r.who for r in first.refused] == [f"offer {folders[0].who}"]
    assert any("out of line" in line for line in told.lines)
    assert all(a.predicted is not None and a.predicted > 0 for a in (*first.accepted, *second.accepted))
    # What was refused changed nothing: the same models as a run without it, and without a screen.
    assert tiny.trees(tmp_path / "run")["seed-0"] == tiny.trees(whole / "run")["seed-0"]


def test_statistics_of_another_model_end_a_study_before_its_first_round(base: Path, tmp_path: Path) -> None:
    fisher_of(Memory({"w": torch.ones(2)}), tmp_path / "F")
    study = tiny.write(tmp_path / "study.yaml", **tiny.ROUNDS, screen={"fisher": "F"})
    with pytest.raises(TaskError, match="belong to another model"):
        tiny.go(study, tmp_path / "run")
    assert not by_kind(read_records(tmp_path / "run" / "records.jsonl"), "round")


def test_a_run_goes_on_as_it_was_begun(tmp_path: Path) -> None:
    study = tiny.write(tmp_path / "study.yaml", **tiny.ROUNDS, rounds=1)
    tiny.go(study, tmp_path / "run")
    (begun,) = by_kind(read_records(tmp_path / "run" / "records.jsonl"), "begun")
    assert "screen" not in begun.study  # so that runs from before there was one go on
    started = Store.open(tmp_path / "run").checkpoint("base")
    fisher_of(started, tmp_path / "F")
    tiny.write(tmp_path / "study.yaml", **tiny.ROUNDS, rounds=1, screen={"fisher": "F"})
    with pytest.raises(StudyError, match="another study") as refused:
        tiny.go(study, tmp_path / "run")
    assert "screen" in str(refused.value.got)
