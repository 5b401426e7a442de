"""Jobs: claimed once, kept by beats, done once."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import select

from cofuse.errors import FuseError
from cofuse.hub.access.roles import Role
from cofuse.hub.access.tokens import make_account
from cofuse.hub.access.visitor import Visitor
from cofuse.hub.database import Audit, Job
from cofuse.hub.faults import Conflict
from cofuse.hub.hub import Hub
from cofuse.hub.repositories import make
from cofuse.hub.states import Done
from cofuse.hub.work import kinds, queue
from cofuse.hub.work.kind import Kind
from cofuse.hub.work.places import HubWork, clear_away
from cofuse.hub.work.worker import Worker

Make = Callable[..., Hub]


@pytest.fixture
def kind(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A kind of work that a test decides on; settling writes one line, so that it is seen how often it was done."""
    does: dict[str, Any] = {"run": lambda place, payload: {}, "attempts": 3}

    def settle(hub: Hub, transaction: Any, job: Job, answer: Any) -> None:
        transaction.add(Audit(at=0, action="settled", target=job.key, detail=answer))
        if does.get("settle"):
            does["settle"](answer)

    def fail(hub: Hub, transaction: Any, job: Job) -> None:
        transaction.add(Audit(at=0, action="failed", target=job.key, detail={"error": job.error}))

    def kind_of(name: str) -> Kind:
        return Kind(does["run"], settle, fail, does["attempts"])

    for module in ("queue", "worker"):
        monkeypatch.setattr(f"cofuse.hub.work.{module}.kind_of", kind_of)
    assert "fuse" in kinds.KINDS
    return does


def ask(hub: Hub, *keys: str, ready: float | None = None) -> None:
    with hub.database.writing() as change:
        from cofuse.hub.database import Repository

        row = change.scalar(select(Repository))
        if row is None:
            owner = make_account(change, "ann", Role.MAINTAIN)
            row = make(change, Visitor(owner.id, "ann", Role.MAINTAIN, Role.MAINTAIN), hub.repositories, "model")
        for key in keys:
            queue.ask(change, "fuse", key, row.id, {"key": key}, ready=ready)


def expire(hub: Hub) -> None:
    """Let all leases end."""
    with hub.database.writing() as change:
        for one in change.scalars(select(Job)):
            one.leased = 0.0


def told(hub: Hub, action: str) -> list[str]:
    with hub.database.reading() as look:
        return sorted(look.scalars(select(Audit.target).where(Audit.action == action)))


def row(hub: Hub, key: str) -> Job:
    with hub.database.reading() as look:
        found = look.scalar(select(Job).where(Job.key == key))
        assert found is not None
        return found


def test_what_is_asked_for_twice_is_one_job(make_hub: Make, kind: dict[str, Any]) -> None:
    hub = make_hub()
    ask(hub, "a", "a")
    ask(hub, "a")
    assert queue.claim(hub, "w") is not None
    assert queue.claim(hub, "w") is None


def test_many_workers_share_the_jobs_and_each_is_done_once(make_hub: Make, kind: dict[str, Any]) -> None:
    hubs = [make_hub() for _ in range(4)]
    keys = [f"job {i:02}" for i in range(24)]
    ask(hubs[0], *keys)
    ran: Counter[str] = Counter()

    def work(hub: Hub) -> None:
        while (job := queue.claim(hub, "w")) is not None:
            ran.update([str(job.payload["key"])])
            queue.finish(hub, job.id, job.fence, {})

    threads = [threading.Thread(target=work, args=(hub,)) for hub in hubs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ran == Counter(keys)
    assert told(hubs[0], "settled") == keys


def test_a_late_answer_is_refused_and_the_same_answer_again_is_not(make_hub: Make, kind: dict[str, Any]) -> None:
    hub = make_hub(lease=1000)
    ask(hub, "a")
    slow = queue.claim(hub, "slow")
    assert slow is not None
    assert queue.claim(hub, "quick") is None
    expire(hub)
    quick = queue.claim(hub, "quick")
    assert quick is not None
    assert quick.id == slow.id
    assert quick.fence == slow.fence + 1
    for late in (
        lambda: queue.beat(hub, slow.id, slow.fence),
        lambda: queue.finish(hub, slow.id, slow.fence, {}),
        lambda: queue.fail(hub, slow.id, slow.fence, "x", final=True),
        lambda: queue.give_back(hub, slow.id, slow.fence),
    ):
        with pytest.raises(Conflict):
            late()
    queue.finish(hub, quick.id, quick.fence, {})
    queue.finish(hub, quick.id, quick.fence, {})
    assert told(hub, "settled") == ["a"]
    with pytest.raises(Conflict):
        queue.finish(hub, slow.id, slow.fence, {})


def test_beats_keep_a_lease_alive(make_hub: Make, kind: dict[str, Any]) -> None:
    hub = make_hub(lease=3)
    ask(hub, "a")
    leases: list[float] = []

    def run(place: Any, payload: Any) -> Any:
        give_up = time.monotonic() + 60
        while len(set(leases)) < 3 and time.monotonic() < give_up:
            leases.append(row(hub, "a").leased or 0)
            place.progress.bar("working", 10).advance(1)
            time.sleep(0.05)
        return {"progress": row(hub, "a").progress}

    kind["run"] = run
    source = HubWork(hub)
    assert Worker(source).step()
    assert leases == sorted(leases)
    assert len(set(leases)) == 3  # the claim's, and those of two beats
    assert told(hub, "settled") == ["a"]
    source.close()


def test_two_answers_at_once_are_settled_once(make_hub: Make, kind: dict[str, Any]) -> None:
    """The lease ends while the first is being settled: whoever comes second learns that it is late."""
    hubs = [make_hub(), make_hub()]
    ask(hubs[0], "a")
    first = queue.claim(hubs[0], "1")
    expire(hubs[0])
    second = queue.claim(hubs[1], "2")
    assert first is not None
    assert second is not None
    kind["settle"] = lambda answer: time.sleep(0.2)
    refused: list[int] = []

    def finish(hub: Hub, job: Any) -> None:
        try:
            queue.finish(hub, job.id, job.fence, {})
        except Conflict:
            refused.append(job.fence)

    threads = [threading.Thread(target=finish, args=pair) for pair in zip(hubs, (first, second), strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert refused == [first.fence]
    assert told(hubs[0], "settled") == ["a"]


def test_what_fails_says_why_is_tried_again_and_can_be_by_hand(make_hub: Make, kind: dict[str, Any]) -> None:
    hub = make_hub()
    ask(hub, "broken", "wrong")
    kind["attempts"] = 2

    def run(place: Any, payload: Any) -> Any:
        if payload["key"] == "wrong":
            raise FuseError("cannot be fused", got=str(hub.repositories / "x"))
        raise RuntimeError("a bug")

    kind["run"] = run
    source = HubWork(hub)
    worker = Worker(source)
    while worker.step():
        pass
    wrong, broken = row(hub, "wrong"), row(hub, "broken")
    assert wrong.state == Done.FAILED
    assert "cannot be fused" in wrong.error
    assert str(hub.settings.data) not in wrong.error
    assert broken.state == Done.WAITING
    assert broken.ready > time.time()
    assert told(hub, "failed") == ["wrong"]
    with hub.database.writing() as change:
        change.get_one(Job, broken.id).ready = 0
    assert worker.step()
    assert row(hub, "broken").state == Done.FAILED
    assert told(hub, "failed") == ["broken", "wrong"]
    kind["run"] = lambda place, payload: {}
    with hub.database.writing() as change:
        queue.retry(change, change.get_one(Job, wrong.id))
    assert worker.step()
    assert row(hub, "wrong").state == Done.DONE
    assert row(hub, "wrong").error == ""
    with hub.database.writing() as change, pytest.raises(Conflict):
        queue.retry(change, change.get_one(Job, wrong.id))
    source.close()


@pytest.mark.parametrize(
    ("error", "said"),
    [(FuseError("means nothing"), "means nothing"), (KeyError("checks"), "not what such a job gives")],
    ids=["refused", "garbage"],
)
def test_an_answer_that_cannot_be_settled_changes_nothing(
    make_hub: Make, kind: dict[str, Any], error: Exception, said: str
) -> None:
    hub = make_hub()
    ask(hub, "a")
    job = queue.claim(hub, "w")
    assert job is not None

    def refuse(answer: Any) -> None:
        raise error

    kind["settle"] = refuse
    queue.finish(hub, job.id, job.fence, {})
    assert told(hub, "settled") == []
    assert row(hub, "a").state == Done.FAILED
    assert said in row(hub, "a").error


def test_the_jobs_of_a_dead_worker_are_free_at_once(make_hub: Make, kind: dict[str, Any]) -> None:
    hub = make_hub(lease=1000)
    ask(hub, "a", "b")
    dead, alive = HubWork(hub), HubWork(hub)
    assert dead.claim() is not None
    kept = alive.claim()
    assert kept is not None
    clear_away(hub)
    assert queue.claim(hub, "other") is None  # both live
    import os

    os.close(dead._lock)  # as the end of a process does
    clear_away(hub)
    again = queue.claim(hub, "other")
    assert again is not None
    assert again.key == "a"
    queue.beat(hub, kept.id, kept.fence)
    alive.close()


def test_a_job_that_kills_its_workers_is_given_up(make_hub: Make, kind: dict[str, Any]) -> None:
    hub = make_hub()
    ask(hub, "a")
    for _ in range(queue.DEATHS):
        job = queue.claim(hub, "doomed")
        assert job is not None
        queue.release(hub, "doomed")
    assert queue.claim(hub, "doomed") is None
    assert row(hub, "a").state == Done.FAILED
    assert "died" in row(hub, "a").error
    assert told(hub, "failed") == ["a"]


def test_a_worker_that_lost_its_job_stops_at_once(make_hub: Make, kind: dict[str, Any]) -> None:
    hub = make_hub(lease=0.3)
    ask(hub, "a")
    went_on: list[int] = []

    def run(place: Any, payload: Any) -> Any:
        with hub.database.writing() as change:  # another has taken it up meanwhile
            change.get_one(Job, 1).fence += 1
        bar = place.progress.bar("working", 1000)
        for i in range(1000):
            time.sleep(0.01)
            bar.advance()
            went_on.append(i)
        return {}

    kind["run"] = run
    source = HubWork(hub)
    assert Worker(source).step()
    assert len(went_on) < 500
    assert told(hub, "settled") == []
    source.close()
