"""Whatever comes in: a clear refusal or a good contribution, never a failure of the hub."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cofuse.errors import CofuseError
from cofuse.hub.checks import CHECKS, Case
from cofuse.hub.checks.case import is_theirs
from cofuse.hub.database import Job
from cofuse.hub.states import Checked
from cofuse.progress import SILENT

from .bench import Bench, tuned
from .mutants import WAYS


class Place:
    """A workplace without a hub: uploads are files of a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.progress = folder, SILENT

    def upload(self, key: str) -> Path:
        return self.folder / key


def mutants(bench: Bench, count: int, seed: int) -> list[tuple[str, bytes]]:
    good = {"patch": bench.patch(tuned(bench.base, 1)), "weights": bench.weights(tuned(bench.base, 1))}
    made = []
    for i in range(count):
        draw = random.Random(seed * 1_000_003 + i)
        what = draw.choice(sorted(good))
        made.append((what, draw.choice(WAYS)(good[what], draw)))
    return made


def test_a_thousand_mutants_are_refused_in_words_or_are_good(bench: Bench, tmp_path: Path) -> None:
    """Each by the checks themselves, as a worker makes them."""
    store = bench.store
    base = store.checkpoint(bench.commit)
    refused = 0
    for number, (what, data) in enumerate(mutants(bench, 1000, 1)):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "key").write_bytes(data)
        name = "contribution.patch" if what == "patch" else "model.safetensors"
        payload: dict[str, Any] = {
            "repository": bench.name,
            "branch": "main",
            "base": bench.commit,
            "source": what,
            "sent": {"files": {name: {"key": "key"}}},
            "metrics": {},
            "signature": None,
        }
        case = Case(payload, Place(folder), store, base)  # type: ignore[arg-type]
        try:
            for look in CHECKS.values():
                found = look(case)
                assert found.state is not Checked.REFUSE
            assert case.body is not None
            for name in case.body.names():
                assert np.isfinite(case.body.read(name).float().numpy()).all()
        except CofuseError as error:
            refused += is_theirs(error)
    assert refused > 800


def _through_the_api(bench: Bench, count: int, seed: int) -> None:
    for number, (what, data) in enumerate(mutants(bench, count, seed)):
        key = bench.upload("eve", data)
        answer = bench.offer("eve", **({"patch": key} if what == "patch" else {"weights": {"model.safetensors": key}}))
        assert answer.status_code == 201, answer.text
        if number % 10 == 9:
            bench.work()
            for one in bench.client("eve").get(bench.url, params={"state": "open"}).json()["contributions"]:
                bench.client("eve").post(f"{bench.url}/{one['number']}/withdraw")
    bench.work()
    with bench.hub.database.reading() as look:
        jobs = [job.state for job in look.query(Job).filter(Job.repository_id == bench.row.id)]
    assert set(jobs) == {"done"}
    states = [bench.look(number)["state"] for number in range(1, count + 1)]
    assert set(states) <= {"refused", "withdrawn"}


def test_mutants_through_the_api(bench: Bench) -> None:
    _through_the_api(bench, 60, 2)


@pytest.mark.slow
def test_ten_thousand_mutants_through_the_api(bench: Bench) -> None:
    _through_the_api(bench, 10_000, 3)


NAMES = ["title", "branch", "base", "commit", "weights", "patch", "fisher", "message", "data", "licence", "examples"]
NAMES += ["metrics", "labels", "signature", "nonce", "body", "reason"]
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=30),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_body_and_no_query_makes_the_hub_fail(bench: Bench, data: st.DataObject) -> None:
    said = {"title": "t", "patch": "0" * 32} if data.draw(st.booleans()) else {}
    said |= data.draw(st.dictionaries(st.sampled_from(NAMES), ANYTHING, max_size=4))
    method, path = data.draw(
        st.sampled_from(
            [
                ("POST", ""),
                ("PATCH", "/1"),
                ("POST", "/1/comments"),
                ("POST", "/1/refuse"),
                ("POST", "/1/accept"),
                ("GET", ""),
                ("GET", "/1/comments"),
            ]
        )
    )
    who = data.draw(st.sampled_from(["owner", "ann"]))
    query = {
        name: str(data.draw(ANYTHING))[:50].encode("utf-8", "replace").decode()
        for name in ("state", "branch", "account", "before", "limit", "after")
        if data.draw(st.booleans())
    }
    content = json.dumps(said).encode()
    answer = bench.client(who).request(
        method, bench.url + path, params=query, content=content, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code < 500, (said, query, answer.text)


@pytest.mark.parametrize("number", ["0", "-1", "1.5", "%00", "..%2f..%2f", "9" * 40, "½", "１"])
def test_what_is_no_number_is_no_contribution(bench: Bench, number: str) -> None:
    for path in ("", "/comments"):
        assert 400 <= bench.client("ann").get(f"{bench.url}/{number}{path}").status_code < 500


def test_a_patch_that_grows_without_end_costs_nothing(bench: Bench) -> None:
    """New tensors of a patch are not the base's: they are never written out."""
    theirs = tuned(bench.base, 1) | {"bomb": torch.zeros(4_000_000)}
    data = bench.patch(theirs)
    assert len(data) < 100_000 + 16 * sum(t.numel() for t in bench.base.values())
    number = bench.offer("eve", patch=bench.upload("eve", data)).json()["number"]
    bench.work()
    seen = bench.look(number)
    assert seen["state"] == "open"
    assert "bomb" not in bench.store.checkpoint(seen["commit"])
