"""A hub in this process, with one model of one number, so that what a release must be is arithmetic."""

from __future__ import annotations

import itertools
import math
import os
import signal
import time
from pathlib import Path
from typing import Any

import torch
from sqlalchemy import select

from cofuse.checkpoint import Memory
from cofuse.hub.access.roles import Role
from cofuse.hub.access.tokens import make_account
from cofuse.hub.access.visitor import Visitor
from cofuse.hub.database import Account, Branch, Contribution, Release, Round
from cofuse.hub.hub import Hub
from cofuse.hub.repositories import Seen, make
from cofuse.hub.rounds.branching import set_policy
from cofuse.hub.settings import Settings
from cofuse.hub.states import Stage
from cofuse.hub.suites import set_suite
from cofuse.hub.work.places import HubWork
from cofuse.hub.work.worker import Worker
from cofuse.store.refs import HEADS, TAGS, Refs

POLICY = "round: {contributions: 2}\nfuse: {method: linear}"
UNMEASURABLE = "name: gate\ntasks: [nowhere]\n"  # a suite whose tasks this hub has not: a maintainer must decide
# Where a worker can be killed: what it has just done.
POINTS = ("claimed", "made", "branch", "tag", "settled")


class Village:
    """A hub, its model, a maintainer, and three people.

    Args:
        folder: of the hub.
        database: its URL; SQLite in the folder when None.
    """

    def __init__(
        self, folder: Path, database: str | None = None, policy: str = POLICY, tasks: Path | None = None
    ) -> None:
        self.settings = Settings(data=folder, database=database, tasks=tasks)
        self.hub = Hub(self.settings)
        self.hub.database.migrate()
        with self.hub.database.writing() as change:
            owner = make_account(change, "ann", Role.MAINTAIN)
            for name in ("bob", "eve", "kim"):
                make_account(change, name, Role.CONTRIBUTE)
            ann = Visitor(owner.id, "ann", Role.MAINTAIN, Role.MAINTAIN)
            self.repository = make(change, ann, self.hub.repositories, "model")
            self.seen = Seen(self.repository, ann, Role.MAINTAIN)
            set_policy(change, self.seen, "main", policy)
        self.store = self.hub.store(self.repository)
        self.base = self.commit(0.0, None)
        self.store.update_ref(HEADS + "main", self.base)
        self.source = HubWork(self.hub)
        self.count = 0

    def close(self) -> None:
        """Close it."""
        self.source.close()
        self.hub.close()

    def commit(self, value: float, parent: str | None) -> str:
        """A version whose one number is this."""
        model = Memory({"w": torch.tensor([value], dtype=torch.float64)}, files={"config.json": b"{}"})
        made = self.store.commit(model, message=str(value), branch="drafts", parents=[] if parent is None else [parent])
        return made.id

    def value(self, rev: str) -> float:
        """The number of a version."""
        return float(self.store.checkpoint(rev).read("w")[0])

    def tip(self) -> str:
        """The branch's commit."""
        found = self.store.refs.get(HEADS + "main")
        assert found is not None
        return found

    def offer(self, who: str, delta: float, base: str, **more: Any) -> int:
        """A contribution that has been screened: its base's number and `delta`."""
        return self.put(who, self.commit(self.value(base) + delta, base), base, **more)

    def put(self, who: str, commit: str, base: str, **more: Any) -> int:
        """A contribution that has been screened."""
        self.count += 1
        now = time.time()
        with self.hub.database.writing() as change:
            account = change.scalar(select(Account).where(Account.name == who))
            assert account is not None
            change.add(
                Contribution(
                    repository_id=self.repository.id,
                    number=self.count,
                    account_id=account.id,
                    branch="main",
                    base=base,
                    source="commit",
                    sent={},
                    nonce=str(self.count),
                    state="open",
                    commit=commit,
                    content=self.store.load_commit(commit).content,
                    title="t",
                    metrics={},
                    labels=[],
                    created=now,
                    updated=now,
                    **more,
                )
            )
        return self.count

    def work(self) -> None:
        """Do all there is to do."""
        worker = Worker(self.source)
        while True:
            self.hub.looked = -math.inf  # now: rounds that are due, workers that have died
            if not worker.step():
                return

    def die(self, point: str, count: int = 1) -> bool:
        """Have a worker in a process of its own do jobs, and be killed at a point; whether it came to that."""
        child = os.fork()
        if not child:
            try:
                _do_and_die(self.settings, point, count)
            finally:
                os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL

    def measurable(self, yes: bool) -> None:
        """Whether the gate can say something: without a suite it lets everything pass."""
        with self.hub.database.writing() as change:
            set_suite(change, self.seen, "" if yes else UNMEASURABLE)

    def go_on(self, policy: str = POLICY) -> None:
        """Let a branch that waits go on."""
        with self.hub.database.writing() as change:
            set_policy(change, self.seen, "main", policy)

    def paused(self) -> bool:
        """Whether the branch waits for a maintainer."""
        with self.hub.database.reading() as look:
            return look.get_one(Branch, (self.repository.id, "main")).paused is not None

    def states(self) -> dict[int, str]:
        """Of contributions, by number."""
        with self.hub.database.reading() as look:
            return {one.number: one.state for one in look.scalars(select(Contribution))}

    def rounds(self) -> list[Round]:
        """In their order."""
        with self.hub.database.reading() as look:
            return list(look.scalars(select(Round).order_by(Round.id)))

    def releases(self) -> list[Release]:
        """In their order."""
        with self.hub.database.reading() as look:
            return list(look.scalars(select(Release).order_by(Release.id)))

    def check(self) -> None:
        """What must be so whenever no work is under way."""
        releases, tags, rounds = self.releases(), self.store.tags(), self.rounds()
        chain = [self.base, *(one.commit for one in releases)]
        # One commit after another: the branch has only ever moved on, to releases alone.
        for before, after in itertools.pairwise(chain):
            assert self.store.load_commit(after).parents == (before,)
        assert self.tip() == chain[-1]
        assert {one.version: one.commit for one in releases} == tags
        published = [one for one in rounds if one.state == Stage.PUBLISHED]
        assert [(one.id, one.commit, one.version) for one in published] == [
            (one.round_id, one.commit, one.version) for one in releases
        ]
        assert [one.number for one in rounds] == list(range(1, len(rounds) + 1))


def _do_and_die(settings: Settings, point: str, count: int) -> None:
    """The child's part: kill points are put around what the worker calls, in this process alone."""
    from cofuse.hub.rounds import course
    from cofuse.hub.work import fusing, queue, worker

    left = count

    def here(at: str) -> None:
        nonlocal left
        if at == point:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def after(owner: Any, name: str, at: str) -> None:
        own = getattr(owner, name)

        def wrapped(*arguments: Any, **named: Any) -> Any:
            found = own(*arguments, **named)
            here(at)
            return found

        setattr(owner, name, wrapped)

    update = Refs.update

    def moved(self: Refs, ref: str, new: str | None, **named: Any) -> None:
        update(self, ref, new, **named)
        here("branch" if ref.startswith(HEADS) else "tag" if ref.startswith(TAGS) else "")

    Refs.update = moved  # type: ignore[method-assign]
    after(queue, "claim", "claimed")
    after(fusing, "make", "made")
    after(course, "ask", "settled")  # the transaction is not yet committed
    hub = Hub(settings)
    source = HubWork(hub)
    assert worker.Worker is Worker
    for _ in range(6):
        hub.looked = -math.inf
        if not Worker(source).step():
            return
