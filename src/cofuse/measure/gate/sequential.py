"""What to evaluate next, and when to stop: the gate as a stream of batches.

Rapid evaluation looks at the data up to ten times, and stops as soon as the policy's answer is clear. Looking often would
make clear what is chance, so each look's critical value is Lan and DeMets': however the order of tasks and the moment of
stopping are chosen, from whatever was seen, the errors are those of one look (repeated intervals; Jennison and Turnbull,
Journal of the Royal Statistical Society B 51, 1989). Spending like O'Brien and Fleming's keeps nearly all for the last look,
so that what is undecided early is decided as the full evaluation would. An anytime-valid test would let everybody look
after each example, for intervals half as wide again at the planned end: the gate's batches do not need it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ...errors import SuiteError
from ..outcomes import Outcomes
from .comparison import Comparison, Key, compare
from .policy import Policy
from .size import planned
from .verdict import Verdict, judge

PILOT = 200  # examples by which the number of examples is planned
LOOKS = tuple(round(0.1 * k, 1) for k in range(1, 11))  # shares of the planned examples
# Protocols by what an example costs: those that train nothing first.
CHEAPEST = ("oldhead", "zeroshot", "perplexity", "probe", "fewshot", "finetune")


@dataclass(frozen=True, slots=True)
class Item:
    """A task by a protocol, as it could be evaluated.

    Attributes:
        available: its test examples.
        cost: of one example, in any unit that is the same for all; seconds where they are known.
        telling: how likely it is to decide, relative to others: by what is known before (a predicted change, past gates).
    """

    protocol: str
    task: str
    available: int
    cost: float = 1.0
    telling: float = 1.0

    @property
    def key(self) -> Key:
        """Protocol and task."""
        return self.protocol, self.task


@dataclass(frozen=True, slots=True)
class Batch:
    """Test examples that are wanted next, of both models: the `start`-th to the `stop`-th in a drawn order."""

    protocol: str
    task: str
    start: int
    stop: int


@dataclass
class _Progress:
    """How far one item is."""

    item: Item
    old: list[Outcomes] = field(default_factory=list)
    new: list[Outcomes] = field(default_factory=list)
    taken: int = 0
    wanted: int | None = None  # examples that the margin needs
    looks: tuple[float, ...] = ()
    found: Comparison | None = None  # of what was taken

    @property
    def planned(self) -> int:
        """Examples that the full evaluation takes."""
        return min(self.item.available, self.wanted) if self.wanted is not None else self.item.available


class Trial:
    """One gate under way: iterate over it for batches, and hand in the outcomes of each before asking for the next.

        trial = Trial(items, policy)
        for batch in trial:
            trial.take(old_outcomes(batch), new_outcomes(batch))
        trial.verdict

    A pilot of each task says how many examples its margin needs; the trial takes that many, or all there are. Protocols
    go from cheap to dear; within one, tasks with the most telling per cost first, then those that look worst, because one
    clear drop is a decision.

    Args:
        items: what can be evaluated; each protocol and task once.
        policy: what is decided.
        rapid: whether to look before everything is taken.
        predicted: what a Fisher predicts; see `Comparison`.
        reshaped: whether no old head fits; nothing is evaluated then.
        pilot: examples of a task's first batch.

    Raises:
        SuiteError: an item stands twice, or there is none.
    """

    def __init__(
        self,
        items: Sequence[Item],
        policy: Policy,
        *,
        rapid: bool = True,
        predicted: float | None = None,
        reshaped: bool = False,
        pilot: int = PILOT,
    ) -> None:
        self.policy = policy
        self.rapid = rapid
        self.predicted = predicted
        self.reshaped = reshaped
        self.pilot = pilot
        self._items = {item.key: _Progress(item) for item in items}
        if len(self._items) < len(items) or not items:
            raise SuiteError("a gate has tasks, each once", got=f"{len(items)} items")
        self._waiting: Batch | None = None

    def __iter__(self) -> Iterator[Batch]:
        if self.reshaped:
            return
        known = [p for p in CHEAPEST if any(key[0] == p for key in self._items)]
        stages = [*known, *sorted({key[0] for key in self._items} - set(known))]
        for protocol in stages:
            stage = [p for key, p in self._items.items() if key[0] == protocol]
            for batch in self._stage(stage):
                self._waiting = batch
                yield batch
                self._check_handed_in()
                if self.rapid and self.verdict.state == "block":
                    return

    def take(self, old: Sequence[Outcomes], new: Sequence[Outcomes]) -> None:
        """Hand in the outcomes of the batch that was asked for, one of each seed for either model.

        Raises:
            SuiteError: they are not of that batch.
        """
        batch = self._waiting
        if batch is None or any((o.protocol, o.task) != (batch.protocol, batch.task) for o in (*old, *new)):
            raise SuiteError("outcomes of a batch that was not asked for", expected=batch)
        progress = self._items[batch.protocol, batch.task]
        if any(len(o) != batch.stop - batch.start for o in (*old, *new)):
            raise SuiteError(
                "outcomes are not of the batch", where=batch.task, expected=f"{batch.stop - batch.start} examples"
            )
        progress.old = _joined(progress.old, old)
        progress.new = _joined(progress.new, new)
        progress.taken = batch.stop
        if progress.wanted is None:
            progress.wanted = self._plan(progress)
        key = progress.item.key
        share = progress.taken / progress.planned
        if share >= 1 or (self.rapid and share > (progress.looks[-1] if progress.looks else 0)):
            progress.looks = (*progress.looks, min(1.0, share))
        progress.found = compare(
            progress.old,
            progress.new,
            looks={key: progress.looks or (1.0,)},
            available={key: progress.item.available},
            wanted={key: progress.wanted},
        )
        self._waiting = None

    @property
    def comparison(self) -> Comparison:
        """Everything taken so far; of items that nothing was taken of, nothing.

        Raises:
            SuiteError: nothing was taken yet, or batches are of different suites.
        """
        found = [p.found for _, p in sorted(self._items.items()) if p.found is not None]
        if len({c.suite for c in found}) != 1:
            raise SuiteError("a gate is of one suite", got=f"{len({c.suite for c in found})} suites")
        return Comparison(
            old=",".join(sorted({c.old for c in found})),
            new=",".join(sorted({c.new for c in found})),
            suite=found[0].suite,
            tasks=tuple(t for c in found for t in c.tasks),
            predicted=self.predicted,
            reshaped=self.reshaped,
        )

    @property
    def verdict(self) -> Verdict:
        """The policy's answer to what was taken so far: the decision, once the iteration has ended.

        Raises:
            SuiteError: nothing was taken yet.
        """
        if self.reshaped:
            return judge(Comparison(old="", new="", reshaped=True), self.policy)
        return judge(self.comparison, self.policy)

    @property
    def taken(self) -> int:
        """Examples taken so far, over all items."""
        return sum(p.taken for p in self._items.values())

    @property
    def planned(self) -> int:
        """Examples that the full evaluation takes, as far as pilots have told."""
        return sum(p.planned for p in self._items.values())

    @property
    def saved(self) -> float:
        """Share of the full evaluation's cost that was not spent, once the iteration has ended."""
        whole = math.fsum(p.planned * p.item.cost for p in self._items.values())
        return 1.0 - math.fsum(p.taken * p.item.cost for p in self._items.values()) / whole

    def _check_handed_in(self) -> None:
        if self._waiting is not None:
            raise SuiteError("a batch was not handed in", where=f"{self._waiting.protocol} on {self._waiting.task}")

    def _plan(self, progress: _Progress) -> int:
        item = progress.item
        pilot = compare(progress.old, progress.new).tasks[0].difference
        tests = sum(self.policy.counts(task) for _, task in self._items)
        margin, power = self.policy.margin(item.task), self.policy.power
        return max(
            progress.taken,
            planned(pilot, progress.taken, margin, confidence=self.policy.confidence, power=power, tests=max(1, tests)),
        )

    def _stage(self, stage: Sequence[_Progress]) -> Iterator[Batch]:
        """Batches of one protocol: a pilot of every task, then a share more of each that is not clear."""
        for p in sorted(stage, key=lambda p: (-p.item.telling / p.item.cost, p.item.task)):
            yield Batch(*p.item.key, 0, min(self.pilot, p.item.available))
        for share in LOOKS if self.rapid else (1.0,):
            unclear = self._unclear(stage)
            if not unclear:
                return
            for p in unclear:
                stop = math.ceil(share * p.planned)
                if stop > p.taken:
                    yield Batch(*p.item.key, p.taken, stop)

    def _unclear(self, stage: Sequence[_Progress]) -> list[_Progress]:
        """What more examples are wanted of, what looks worst first; everything where only the mean is unclear."""
        left = [p for p in stage if p.taken < p.planned]
        if not self.rapid:
            return left
        left = [p for p in left if self.policy.counts(p.item.task)]
        found = self.comparison
        verdict = judge(found, self.policy)
        of_stage = {p.item.key for p in stage}
        open_ = {(f.protocol, f.task) for f in verdict.findings if f.state == "undecided"}
        if not open_ & (of_stage | {("*", "*")}):
            return []
        worst = {(t.protocol, t.task): t.difference.z(self.policy.margin(t.task)) for t in found.tasks}
        unclear = [p for p in left if p.item.key in open_] or left
        return sorted(unclear, key=lambda p: (worst[p.item.key], p.item.task))


def _joined(before: list[Outcomes], more: Sequence[Outcomes]) -> list[Outcomes]:
    """Outcomes of each seed with those of the next batch behind them."""
    if not before:
        return list(more)
    if [o.seed for o in before] != [o.seed for o in more]:
        raise SuiteError("each batch has the same seeds", got=[o.seed for o in more], expected=[o.seed for o in before])
    return [Outcomes.joined([a, b]) for a, b in zip(before, more, strict=True)]
