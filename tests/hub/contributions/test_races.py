"""Workers that finish in any order, on either database; and looks that are taken again."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import select

from cofuse.hub.database import Check, Contribution
from cofuse.hub.work import queue
from cofuse.hub.work.kinds import kind_of
from cofuse.hub.work.places import HubPlace
from cofuse.hub.work.queue import Claimed
from cofuse.progress import SILENT

from ..postgres import postgres, programs
from ..serving import HubServer
from .bench import KINDS, Bench, tuned
from .test_beside import flipped, policy


def done(bench: Bench, jobs: list[Claimed]) -> None:
    """Do claimed jobs, and hand them in in this order."""
    answers = []
    for job in jobs:
        with tempfile.TemporaryDirectory(dir=bench.folder) as folder:
            answers.append(kind_of(job.kind).run(HubPlace(bench.hub, SILENT, Path(folder)), job.payload))
    for job, answer in zip(jobs, answers, strict=True):
        queue.finish(bench.hub, job.id, job.fence, answer)


def claimed(bench: Bench, count: int) -> list[Claimed]:
    found = [queue.claim(bench.hub, f"w{i}", KINDS) for i in range(count)]
    assert None not in found
    return [one for one in found if one is not None]


def test_comparisons_handed_in_backwards_open_all_and_the_latest_stands(bench: Bench) -> None:
    numbers = [bench.offered(f"c{seed}", tuned(bench.base, seed)) for seed in range(4)]
    done(bench, claimed(bench, 4))
    compares = claimed(bench, 4)
    assert {job.kind for job in compares} == {"compare"}
    done(bench, compares[::-1])
    for number in numbers:
        seen = bench.look(number)
        assert seen["state"] == "open"
        assert seen["checks"]["direction"]["detail"]["peers"] == 3
    with bench.hub.database.reading() as look:
        newest = max(job.id for job in compares)
        rows = look.scalars(
            select(Check)
            .join(Contribution, Contribution.id == Check.contribution_id)
            .where(Contribution.repository_id == bench.row.id, Check.name == "direction")
        )
        assert {row.detail["job"] for row in rows} == {newest}


def test_of_the_same_weights_looked_at_at_once_one_is_taken(bench: Bench) -> None:
    numbers = [bench.offered(f"c{i}", tuned(bench.base, 1)) for i in range(4)]
    done(bench, claimed(bench, 4)[::-1])
    bench.work()
    assert sorted(bench.look(number)["state"] for number in numbers) == ["open", "refused", "refused", "refused"]


def test_what_the_policy_refused_is_compared_again_without_its_files(bench: Bench) -> None:
    policy(bench, "{round: {contributions: 50}, screen: {direction: refuse}}")
    peers = [bench.offered(f"c{seed}", tuned(bench.base, seed)) for seed in range(3)]
    bad = bench.offered("eve", flipped(bench.base, 9))
    bench.work()
    assert bench.look(bad)["state"] == "refused"
    assert bench.client("eve").post(f"{bench.url}/{bad}/retry").json()["state"] == "received"
    bench.work()
    assert bench.look(bad)["state"] == "refused"
    for who, number in enumerate(peers):
        bench.client(f"c{who}").post(f"{bench.url}/{number}/withdraw")
    bench.client("eve").post(f"{bench.url}/{bad}/retry")
    bench.work()
    assert bench.look(bad)["state"] == "open"


def test_an_author_cannot_try_again_what_a_maintainer_refused(bench: Bench) -> None:
    number = bench.offered("ann", tuned(bench.base, 1))
    bench.work()
    bench.client("owner").post(f"{bench.url}/{number}/refuse", json={"reason": "no"})
    for who in ("ann", "owner"):
        assert bench.client(who).post(f"{bench.url}/{number}/retry").status_code == 409
    assert bench.look(number)["state"] == "refused"


def test_a_look_that_broke_is_said_and_can_be_taken_again(bench: Bench) -> None:
    number = bench.offered("ann", tuned(bench.base, 1))
    (job,) = claimed(bench, 1)
    queue.fail(bench.hub, job.id, job.fence, "a machine's own secret", final=True)
    seen = bench.look(number)
    assert seen["state"] == "refused"
    assert "could not look" in seen["reason"]
    assert "secret" not in seen["reason"]
    assert bench.client("ann").post(f"{bench.url}/{number}/retry").status_code == 200
    bench.work()
    assert bench.look(number)["state"] == "open"


@pytest.mark.skipif(programs() is None, reason="PostgreSQL is not installed")
def test_the_same_on_postgresql(start_hub: Callable[..., HubServer], tmp_path: Path) -> None:
    with postgres() as url:
        server = start_hub({"database": url})
        bench = Bench.make(server, tmp_path)
        data = [bench.patch(tuned(bench.base, seed) if seed else flipped(bench.base, 9)) for seed in range(6)]
        keys = [bench.upload(f"c{seed}", one) for seed, one in enumerate(data)]
        with ThreadPoolExecutor(6) as pool:
            found = list(pool.map(lambda i: bench.offer(f"c{i % 6}", patch=keys[i % 6], nonce="n"), range(12)))
        assert {one.status_code for one in found} == {201}
        assert {one.json()["number"] for one in found} == set(range(1, 7))
        jobs = claimed(bench, 6)
        with ThreadPoolExecutor(6) as pool:
            list(pool.map(lambda job: done(bench, [job]), jobs))
        compares = claimed(bench, 6)
        with ThreadPoolExecutor(6) as pool:
            list(pool.map(lambda job: done(bench, [job]), compares))
        bad = found[0].json()["number"]
        for number in range(1, 7):
            seen = bench.look(number)
            assert seen["state"] == "open", seen
            assert seen["checks"]["direction"]["state"] == ("warn" if number == bad else "pass")
        assert len(bench.client("c1").get(bench.url, params={"branch": "main"}).json()["contributions"]) == 6
        answer = bench.client("c1").post(f"{bench.url}/{bad}/withdraw")
        assert answer.status_code == 403
        for client in bench.clients.values():
            client.close()
        server.close()
