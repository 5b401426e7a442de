"""Anything in any order, workers killed anywhere, against arithmetic."""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from cofuse.hub.contributions import withdraw
from cofuse.hub.faults import Conflict
from cofuse.hub.rounds.deciding import decide
from cofuse.hub.rounds.opening import start
from cofuse.hub.rounds.replaying import replay
from cofuse.hub.rounds.revoking import revoke
from cofuse.hub.rounds.rolling import roll_back
from cofuse.hub.states import Stage

from .village import POINTS, Village

WHO = ("bob", "eve", "kim")


@dataclass
class Done:
    """A release, in the model: what it is, and its number.

    Attributes:
        kind: round, revocation or rollback.
        value: the number.
        given: a round's contributions.
        to: a rollback's release, by its place.
    """

    kind: str
    value: float
    given: tuple[int, ...] = ()
    to: int = 0


@dataclass
class Offered:
    """A contribution, in the model."""

    who: str
    delta: float
    state: str = "open"


@dataclass
class Model:
    """What the hub should be, without any of what makes it hard."""

    done: list[Done] = field(default_factory=list)
    offered: dict[int, Offered] = field(default_factory=dict)
    covered: set[int] = field(default_factory=set)  # revoked, and taken out or decided to be left
    held: Done | None = None
    measurable: bool = True
    paused: bool = False

    @property
    def value(self) -> float:
        return self.done[-1].value if self.done else 0.0

    def open(self) -> tuple[int, ...]:
        return tuple(n for n, one in self.offered.items() if one.state == "open")

    def revoked(self) -> set[int]:
        return {n for n, one in self.offered.items() if one.state == "revoked"}

    def mean(self, given: tuple[int, ...]) -> float:
        return fmean(self.offered[n].delta for n in given) if given else 0.0

    def without(self, gone: set[int]) -> float:
        """The number of the tip, had these never been: the sum of the rounds' means of the others."""
        values = [0.0]
        for one in self.done:
            if one.kind == "round":
                values.append(values[-1] + self.mean(tuple(n for n in one.given if n not in gone)))
            else:
                values.append(values[-1] if one.kind == "revocation" else values[one.to])
        return values[-1]

    def owed(self) -> set[int]:
        there = {n for one in self.done if one.kind == "round" for n in one.given}
        return (there & self.revoked()) - self.covered

    def work(self) -> None:
        """What workers do until nothing is left to do."""
        while self.held is None:
            if owed := self.owed():
                self.covered |= owed
                made = Done("revocation", self.without(self.revoked()))
                if made.value == pytest.approx(self.value, abs=1e-12):
                    continue
            elif not self.paused and len(given := self.open()) >= 2:
                made = self.begin(given)
            else:
                return
            self.judge(made)

    def begin(self, given: tuple[int, ...]) -> Done:
        for n in given:
            self.offered[n].state = "fusing"
        return Done("round", self.value + self.mean(given), given)

    def judge(self, made: Done) -> None:
        if self.measurable:
            self.publish(made)
        else:
            self.held = made

    def publish(self, made: Done) -> None:
        self.done.append(made)
        for n in made.given:
            if self.offered[n].state == "fusing":
                self.offered[n].state = "fused"

    def abandon(self, *, pause: bool) -> None:
        assert self.held is not None
        for n in self.held.given:
            if self.offered[n].state == "fusing":
                self.offered[n].state = "open"
        self.held = None
        self.paused |= pause


class Life(RuleBasedStateMachine):
    """The machine: each rule does one thing to the hub and to the model."""

    database: str | None = None

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.village = Village(Path(self.folder.name) / "data", self.database)
        self.model = Model()

    def teardown(self) -> None:
        if hasattr(self, "village"):
            for one in self.village.releases()[-3:]:
                assert replay(self.village.store, one.commit).same
            self.village.close()
            self.folder.cleanup()

    @rule(who=st.sampled_from(WHO), delta=st.integers(-8, 8).filter(bool), back=st.integers(0, 3))
    def offer(self, who: str, delta: int, back: int) -> None:
        """Some are tuned from a version that is the tip no more."""
        versions = [self.village.base, *(one.commit for one in self.village.releases())]
        number = self.village.offer(who, delta / 7, versions[max(0, len(versions) - 1 - back)])
        self.model.offered[number] = Offered(who, delta / 7)

    @precondition(lambda self: self.model.open())
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(self.model.open()))
        with self.village.hub.database.writing() as change:
            withdraw(change, self.village.seen, number)
        self.model.offered[number].state = "withdrawn"

    @rule()
    def work(self) -> None:
        self.village.work()
        self.model.work()
        self.same()

    @rule(point=st.sampled_from(POINTS), count=st.integers(1, 3))
    def crash(self, point: str, count: int) -> None:
        """A worker is killed; others do what it began."""
        self.village.die(point, count)
        self.work()

    @rule(yes=st.booleans())
    def measure(self, yes: bool) -> None:
        self.village.measurable(yes)
        self.model.measurable = yes

    @precondition(lambda self: self.model.held is None and self.model.open() and not self.model.owed())
    @rule()
    def start(self) -> None:
        """A round by hand; what is worked out only afterwards is the same."""
        with self.village.hub.database.writing() as change:
            start(self.village.hub, change, self.village.seen, "main")
        self.model.paused = False
        self.model.judge(self.model.begin(self.model.open()))
        self.work()

    @precondition(lambda self: self.model.held is not None)
    @rule(publish=st.booleans())
    def decide(self, publish: bool) -> None:
        (held,) = [one for one in self.village.rounds() if one.state == Stage.HELD]
        with self.village.hub.database.writing() as change:
            decide(self.village.hub, change, self.village.seen, held.id, "publish" if publish else "abandon")
        made = self.model.held
        if publish and made is not None:
            self.model.held = None
            self.model.publish(made)
        else:
            self.model.abandon(pause=True)
        self.work()

    @precondition(lambda self: self.model.paused)
    @rule()
    def go_on(self) -> None:
        self.village.go_on()
        self.model.paused = False

    @precondition(lambda self: self.model.offered)
    @rule(data=st.data(), whole=st.booleans())
    def revoke(self, data: st.DataObject, whole: bool) -> None:
        number = data.draw(st.sampled_from(sorted(self.model.offered)))
        who = self.model.offered[number].who
        with self.village.hub.database.writing() as change:
            if whole:
                revoke(self.village.hub, change, self.village.seen, account=who)
            else:
                revoke(self.village.hub, change, self.village.seen, number=number)
        gone = [n for n, one in self.model.offered.items() if (one.who == who if whole else n == number)]
        gone = [n for n in gone if self.model.offered[n].state in ("open", "fusing", "fused")]
        for n in gone:
            self.model.offered[n].state = "revoked"
        if self.model.held is not None and set(gone) & set(self.model.held.given):
            self.model.abandon(pause=False)

    @precondition(lambda self: self.model.done)
    @rule(data=st.data())
    def roll_back(self, data: st.DataObject) -> None:
        place = data.draw(st.integers(1, len(self.model.done)))
        version = self.village.releases()[place - 1].version
        before = {n for one in self.model.done[:place] for n in one.given}
        try:
            with self.village.hub.database.writing() as change:
                roll_back(self.village.hub, change, self.village.seen, version)
        except Conflict:
            held = before & self.model.revoked()
            same = place == len(self.model.done) or self.model.done[place - 1].value == self.model.value
            assert held or same
            return
        if self.model.held is not None:
            covers = self.model.held.kind == "revocation"
            self.model.abandon(pause=False)
            assert not covers or self.model.covered
        self.model.done.append(Done("rollback", self.model.done[place - 1].value, to=place))
        self.model.paused = True
        self.work()

    def same(self) -> None:
        """The hub is what the model is."""
        self.village.check()
        assert self.village.states() == {n: one.state for n, one in self.model.offered.items()}
        assert self.village.value(self.village.tip()) == pytest.approx(self.model.value, abs=1e-9)
        assert [self.village.value(one.commit) for one in self.village.releases()] == pytest.approx(
            [one.value for one in self.model.done], abs=1e-9
        )
        assert self.village.paused() == self.model.paused
        assert any(one.state == Stage.HELD for one in self.village.rounds()) == (self.model.held is not None)

    @invariant()
    def never_half(self) -> None:
        """Whatever happens: the branch is at the base or at a whole release."""
        if not hasattr(self, "village"):
            return
        tip = self.village.store.load_commit(self.village.tip())
        assert tip.id == self.village.base or "release" in tip.record


SETTINGS = settings(
    max_examples=12,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


def test_anything_in_any_order() -> None:
    run_state_machine_as_test(Life, settings=SETTINGS)


def test_the_same_on_postgresql(cluster: str) -> None:
    from .conftest import _empty

    class OnPostgres(Life):
        database = cluster

        @initialize()
        def begin(self) -> None:
            with contextlib.suppress(Exception):
                _empty(cluster)
            super().begin()

    run_state_machine_as_test(OnPostgres, settings=settings(SETTINGS, max_examples=3))
