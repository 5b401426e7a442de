"""What comes in is looked at: what is good becomes a commit, what is not is refused with the reason."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from cofuse.checkpoint import content_id
from cofuse.measure.statistics.record import StatisticsRecord, with_record

from .bench import Bench, body, tuned


def test_a_good_patch_becomes_a_commit_on_its_base(bench: Bench) -> None:
    theirs = tuned(bench.base, 1)
    number = bench.offered("ann", theirs, data="reviews", licence="mit", examples=100, metrics={"accuracy": 0.91})
    assert bench.look(number)["state"] == "received"
    bench.work()
    seen = bench.look(number)
    assert (seen["state"], seen["reason"]) == ("open", "")
    commit = bench.store.load_commit(seen["commit"])
    assert commit.parents == (bench.commit,)
    assert bench.store.refs.get(f"refs/pr/{number}") == commit.id
    assert commit.author.startswith("ann")
    assert commit.record["contribution"]["examples"] == 100
    made = bench.store.checkpoint(commit.id)
    assert {name: made.read(name).tolist() for name in made.names()} == {n: t.tolist() for n, t in theirs.items()}
    assert made.files["config.json"] == bench.store.checkpoint("main").files["config.json"]
    assert seen["content"] == content_id(made)
    assert "0.91" in seen["checks"]["claims"]["figure"]
    assert bench.row.bytes > 0
    assert bench.events(number)[-1] == "screened"


def test_weights_and_commits_are_taken_like_patches(bench: Bench) -> None:
    theirs = {"bert." + n: t for n, t in tuned(bench.base, 2).items()} | {"classifier.weight": torch.ones(2, 16)}
    key = bench.upload("ann", bench.weights(theirs))
    one = bench.offer("ann", weights={"model.safetensors": key}).json()["number"]
    delivered = bench.store.commit(
        bench.checkpoint(tuned(bench.base, 3)), message="mine", branch="side", parents=[bench.commit]
    )
    two = bench.offer("bob", commit=delivered.id).json()
    assert two["base"] == bench.commit
    bench.work()
    for number, seed in ((one, 2), (two["number"], 3)):
        seen = bench.look(number)
        assert seen["state"] == "open", seen
        made = bench.store.checkpoint(seen["commit"])
        assert set(made.names()) == set(bench.base)
        assert torch.equal(
            made.read("encoder.layer.0.output.dense.bias"), tuned(bench.base, seed)["encoder.layer.0.output.dense.bias"]
        )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("way", ["patch", "weights"])
def test_what_is_not_finite_is_refused_and_the_place_named(bench: Bench, value: float, way: str) -> None:
    theirs = tuned(bench.base, 1)
    theirs["encoder.layer.1.output.dense.weight"][3, 5] = value
    data = bench.patch(theirs) if way == "patch" else bench.weights(theirs)
    key = bench.upload("eve", data)
    number = bench.offer(
        "eve", **({"patch": key} if way == "patch" else {"weights": {"model.safetensors": key}})
    ).json()["number"]
    bench.work()
    seen = bench.look(number)
    assert seen["state"] == "refused"
    assert seen["commit"] is None
    assert "not finite" in seen["reason"]
    assert "encoder.layer.1.output.dense.weight" in seen["reason"]
    assert f"element {3 * 16 + 5}" in seen["reason"]
    assert seen["checks"]["finite"]["state"] == "refuse"
    assert bench.store.refs.get(f"refs/pr/{number}") is None
    assert key not in json.dumps(seen)
    assert str(bench.server.data) not in json.dumps(seen)


def test_a_patch_of_another_base_is_refused(bench: Bench) -> None:
    other = bench.checkpoint(body(5))
    key = bench.upload("eve", bench.patch(tuned(body(5), 1), other))
    number = bench.offer("eve", patch=key).json()["number"]
    bench.work()
    seen = bench.look(number)
    assert seen["state"] == "refused"
    assert "another base" in seen["reason"]
    assert seen["checks"]["base"]["state"] == "refuse"


def test_a_tampered_patch_is_refused_wherever_a_byte_is_changed(bench: Bench) -> None:
    good = bench.patch(tuned(bench.base, 1))
    numbers = []
    for at in range(0, len(good), max(1, len(good) // 12)):
        bad = bytearray(good)
        bad[at] ^= 0x41
        numbers.append(bench.offer("eve", patch=bench.upload("eve", bytes(bad))).json()["number"])
    bench.work()
    states = {number: bench.look(number) for number in numbers}
    assert {seen["state"] for seen in states.values()} == {"refused"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t | {"encoder.layer.0.output.dense.bias": torch.zeros(17)}, "another shape"),
        (lambda t: t | {"encoder.layer.0.output.dense.bias": torch.zeros(16, dtype=torch.float16)}, "another dtype"),
        (lambda t: {n: v for n, v in t.items() if n != "encoder.layer.0.output.dense.bias"}, "missing"),
    ],
)
def test_other_shapes_dtypes_and_names_are_refused(bench: Bench, change: Any, said: str) -> None:
    key = bench.upload("eve", bench.weights(change(tuned(bench.base, 1))))
    number = bench.offer("eve", weights={"model.safetensors": key}).json()["number"]
    bench.work()
    seen = bench.look(number)
    assert seen["state"] == "refused"
    assert said in seen["reason"]
    assert seen["checks"]["shapes"]["state"] == "refuse"


def test_pickles_are_not_even_taken(bench: Bench) -> None:
    key = bench.upload("eve", b"\x80\x04.")
    answer = bench.offer("eve", weights={"pytorch_model.bin": key})
    assert answer.status_code == 422
    assert "safetensors" in answer.text
    number = bench.offer("eve", weights={"model.safetensors": key}).json()["number"]
    bench.work()
    assert bench.look(number)["checks"]["format"]["state"] == "refuse"


def test_the_base_itself_is_no_contribution(bench: Bench) -> None:
    key = bench.upload("eve", bench.weights(bench.base))
    number = bench.offer("eve", weights={"model.safetensors": key}).json()["number"]
    bench.work()
    assert "nothing is changed" in bench.look(number)["reason"]


def test_the_same_weights_are_refused_whoever_sends_them_and_as_what(bench: Bench) -> None:
    theirs = tuned(bench.base, 1)
    first = bench.offered("ann", theirs)
    bench.work()
    again, other = bench.offered("ann", theirs), bench.offered("bob", theirs)
    key = bench.upload("bob", bench.weights(theirs))
    whole = bench.offer("bob", weights={"model.safetensors": key}).json()["number"]
    bench.work()
    for number in (again, other, whole):
        seen = bench.look(number)
        assert seen["state"] == "refused"
        assert f"#{first}" in seen["reason"]
        assert seen["commit"] is None
    # What was taken back may come again, from whom it was.
    assert bench.client("ann").post(f"{bench.url}/{first}/withdraw").status_code == 200
    back, stolen = bench.offered("ann", theirs), bench.offered("bob", theirs)
    bench.work()
    assert (bench.look(back)["state"], bench.look(stolen)["state"]) == ("open", "refused")


def test_the_norms_of_each_tensor_are_what_numpy_says(bench: Bench) -> None:
    theirs = tuned(bench.base, 1)
    number = bench.offered("ann", theirs)
    bench.work()
    detail = bench.look(number)["checks"]["norms"]["detail"]
    rows = {row["name"]: row for row in detail["tensors"]}
    assert set(rows) == set(theirs)
    for name, row in rows.items():
        change, before = (theirs[name] - bench.base[name]).double().norm(), bench.base[name].double().norm()
        assert row["change"] == pytest.approx(float(change), rel=1e-3)
        assert row["relative"] == pytest.approx(float(change / before), rel=1e-3)
    assert rows["encoder.layer.1.output.dense.bias"]["layer"] == 1
    assert rows["encoder.layer.1.output.dense.bias"]["part"] == "output.dense.bias"


def fisher(bench: Bench, tensors: dict[str, torch.Tensor], values: dict[str, torch.Tensor]) -> dict[str, str]:
    record = StatisticsRecord(
        kind="fisher", estimator="empirical", model=content_id(bench.checkpoint(tensors)), examples=8
    )
    made = with_record(values, record)
    return {
        "statistics.json": bench.upload("ann", made.files["statistics.json"]),
        "model.safetensors": bench.upload("ann", bench.weights(values)),
    }


def test_a_fisher_times_a_billion_is_the_same_fisher(bench: Bench) -> None:
    found = []
    for seed, factor in ((1, 1.0), (2, 1e9)):
        theirs = tuned(bench.base, seed)
        values = {name: t.abs() * factor for name, t in bench.base.items()}
        values["encoder.layer.0.output.dense.bias"][0] = 1e12 * factor
        number = bench.offered("ann", theirs, fisher=fisher(bench, theirs, values))
        bench.work()
        seen = bench.look(number)
        assert seen["checks"]["fisher"]["state"] == "pass", seen
        assert seen["checks"]["predicted"]["state"] == "pass"
        assert bench.store.refs.get(f"refs/pr/{number}-fisher") == seen["fisher"]
        kept = bench.store.checkpoint(seen["fisher"])
        assert json.loads(kept.files["statistics.json"])["model"] == seen["content"]
        found.append({name: kept.read(name) for name in kept.names()})
    for name, one in found[0].items():
        torch.testing.assert_close(one, found[1][name])
        assert float(one.max()) <= 1e4


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda v: v["encoder.layer.0.output.dense.bias"].__setitem__(3, float("nan")), "element 3"),
        (lambda v: v["encoder.layer.0.output.dense.bias"].__setitem__(3, -1.0), "element 3"),
        (lambda v: [t.zero_() for t in v.values()], "says nothing"),
        (lambda v: v.__setitem__("encoder.layer.0.output.dense.bias", torch.ones(4)), "does not fit"),
        (None, "another model"),
    ],
)
def test_a_fisher_that_is_none_is_refused(bench: Bench, spoil: Any, said: str) -> None:
    theirs = tuned(bench.base, 1)
    values = {name: t.abs() for name, t in bench.base.items()}
    if spoil is not None:
        spoil(values)
    sent = fisher(bench, theirs if spoil is not None else bench.base, values)
    number = bench.offered("ann", theirs, fisher=sent)
    bench.work()
    seen = bench.look(number)
    assert seen["state"] == "refused"
    assert said in seen["reason"]


def test_what_has_been_withdrawn_stays_out_though_it_is_being_looked_at(bench: Bench) -> None:
    number = bench.offered("ann", tuned(bench.base, 1))
    assert bench.client("ann").post(f"{bench.url}/{number}/withdraw").json()["state"] == "withdrawn"
    bench.work()
    seen = bench.look(number)
    assert (seen["state"], seen["commit"]) == ("withdrawn", None)
    assert bench.store.refs.get(f"refs/pr/{number}") is None
