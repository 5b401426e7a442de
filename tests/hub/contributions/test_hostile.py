"""Whatever comes in: a clear refusal or a good contribution, never a failure of the hub."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select, update

from cofuse.errors import CofuseError
from cofuse.hub.checks import CHECKS, Case
from cofuse.hub.checks.case import is_theirs
from cofuse.hub.database import Check, Contribution, Job, Upload
from cofuse.hub.states import Checked
from cofuse.progress import SILENT

from ..serving import HubServer
from .bench import Bench, tuned
from .mutants import WAYS


class Place:
    """A workplace without a hub: uploads are files of a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.progress = folder, SILENT

    def upload(self, key: str) -> Path:
        return self.folder / key


def mutants(bench: Bench, count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    good = {"patch": bench.patch(tuned(bench.base, 1)), "weights": bench.weights(tuned(bench.base, 1))}
    for i in range(count):
        draw = random.Random(seed * 1_000_003 + i)
        what = draw.choice(sorted(good))
        yield what, draw.choice(WAYS)(good[what], draw)


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


def _offer(bench: Bench, what: str, data: bytes) -> None:
    key = bench.upload("eve", data)
    answer = bench.offer("eve", **({"patch": key} if what == "patch" else {"weights": {"model.safetensors": key}}))
    assert answer.status_code == 201, answer.text


def _withdraw(bench: Bench) -> None:
    """What has passed; or all that follows would be compared with it."""
    for one in bench.client("eve").get(bench.url, params={"state": "open"}).json()["contributions"]:
        bench.client("eve").post(f"{bench.url}/{one['number']}/withdraw")


def _jobs(bench: Bench) -> set[str]:
    """States of the repository's jobs."""
    with bench.hub.database.reading() as look:
        return set(look.scalars(select(Job.state).where(Job.repository_id == bench.row.id).distinct()))


def test_mutants_through_the_api(bench: Bench) -> None:
    count = 60
    for number, (what, data) in enumerate(mutants(bench, count, 2), 1):
        _offer(bench, what, data)
        if number % 10 == 0:
            bench.work()
            _withdraw(bench)
    bench.work()
    assert _jobs(bench) == {"done"}
    assert {bench.look(number)["state"] for number in range(1, count + 1)} <= {"refused", "withdrawn"}


@pytest.mark.slow
def test_ten_thousand_mutants_through_the_api(start_hub: Callable[..., HubServer], tmp_path: Path) -> None:
    """Looked at by the hub's own worker: all are refused or good, and when their time is over nothing is left of them."""
    count, many = 10_000, 10**9
    server = start_hub({"limits.requests": many, "limits.contributions": many}, workers=1)
    with closing(Bench.make(server, tmp_path)) as bench:
        answers: Counter[int] = Counter()
        bench.client("eve").event_hooks["response"].append(lambda answer: answers.update([answer.status_code]))
        memory = []
        for number, (what, data) in enumerate(mutants(bench, count, 3), 1):
            _offer(bench, what, data)
            if number % 50 == 0:
                while _jobs(bench) & {"waiting", "running"}:
                    time.sleep(0.05)
                _withdraw(bench)
            if number % 1000 == 0:
                memory.append(server.memory() // 2**20)
                print(number, "sent; MiB of the hub:", memory[-1])
        assert _jobs(bench) == {"done"}
        with bench.hub.database.reading() as look:
            states = dict(look.execute(select(Contribution.state, func.count()).group_by(Contribution.state)).all())
            query = select(Check.name, func.count()).where(Check.state == Checked.REFUSE).group_by(Check.name)
            refused_by = dict(look.execute(query).all())
        print("answers:", dict(answers), "became:", states, "refused by:", refused_by)
        assert set(states) <= {"refused", "withdrawn"}
        assert states["refused"] > 0.8 * count
        assert set(answers) == {200, 201}
        assert memory[-1] < memory[1] + 64
        # When the time of what was refused is over, it goes as others upload.
        with bench.hub.database.writing() as change:
            change.execute(update(Upload).values(expires=0.0))
        last = {bench.upload("eve", b"x") for _ in range(count // 1000 + 1)}
        assert {path.stem for path in bench.hub.uploads.iterdir()} == last
        assert bench.store.fsck().ok
        assert server.process.poll() is None


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
