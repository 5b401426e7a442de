"""Two models beside each other, task by task: everything that a verdict rests on, and no verdict."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from ...errors import SuiteError
from ...tasks.metrics import METRICS
from ..outcomes import Outcomes
from .estimate import Estimate, divergence, estimate
from .matched import Matched, Rate

Difference: TypeAlias = Matched | Estimate
Key: TypeAlias = tuple[str, str]  # protocol, task


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskComparison:
    """New minus old on one task by one protocol.

    Attributes:
        old: value of the old model in the task's metric, a mean over seeds.
        new: of the new one.
        difference: new minus old with what its interval is made of.
        negative: right before and wrong now; None where there are no classes.
        positive: wrong before and right now.
        divergence: KL(old || new) in nats an example; None where log-probabilities are missing.
        n: examples, each in both models and every seed.
        looks: shares of the planned examples at each look so far; one look at all of them is (1.0,).
        available: examples that the task has; None where nobody said.
        wanted: examples that its margin needs; None where nobody asked.
    """

    task: str
    protocol: str
    metric: str
    seeds: tuple[int, ...]
    n: int
    old: float
    new: float
    difference: Difference
    negative: Rate | None = None
    positive: Rate | None = None
    divergence: Estimate | None = None
    looks: tuple[float, ...] = (1.0,)
    available: int | None = None
    wanted: int | None = None

    @property
    def points(self) -> bool:
        """Whether the metric is in percent, so that a mean over tasks means something."""
        return self.metric in METRICS


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """All tasks of a suite.

    Attributes:
        old: content id of the old model; several, joined by commas, where each seed has its own.
        new: of the new one.
        suite: hash of the suite; empty where there is none.
        tasks: by protocol and task, in that order.
        predicted: the change of the output that a Fisher predicts, in nats an example; None where there is none.
        reshaped: whether the new model cannot run the old one's heads at all.
    """

    old: str
    new: str
    suite: str = ""
    tasks: tuple[TaskComparison, ...] = field(default=())
    predicted: float | None = None
    reshaped: bool = False

    @property
    def worst(self) -> TaskComparison | None:
        """The task that lost most."""
        return min((t for t in self.tasks if t.points), key=lambda t: (t.difference.mean, t.task), default=None)

    def mean(self, z: float, tasks: Sequence[TaskComparison] | None = None) -> tuple[float, float, float]:
        """The mean difference over tasks, with its interval at the critical value `z`.

            L = m - sqrt(sum (m_t - l_t)^2) / k        U = m + sqrt(sum (u_t - m_t)^2) / k

        from each task's own interval (l_t, u_t), which may be lopsided; tasks are taken as they are, not as a sample
        of other tasks.

        Source: Zou and Donner, Statistics in Medicine 27 (2008), the MOVER.
        """
        chosen = [t for t in (self.tasks if tasks is None else tasks) if t.points]
        if not chosen:
            return 0.0, 0.0, 0.0
        limits = [(t.difference.mean, *t.difference.interval(z)) for t in chosen]
        mean = math.fsum(m for m, _, _ in limits) / len(limits)
        down = math.sqrt(math.fsum((m - low) ** 2 for m, low, _ in limits)) / len(limits)
        up = math.sqrt(math.fsum((high - m) ** 2 for m, _, high in limits)) / len(limits)
        return mean, mean - down, mean + up


def compare(
    old: Iterable[Outcomes],
    new: Iterable[Outcomes],
    *,
    predicted: float | None = None,
    reshaped: bool = False,
    looks: Mapping[Key, tuple[float, ...]] | None = None,
    available: Mapping[Key, int] | None = None,
    wanted: Mapping[Key, int] | None = None,
) -> Comparison:
    """Pair the outcomes of two models by protocol, task, seed and example.

    Args:
        old: of the old model; every (protocol, task, seed) once.
        new: of the new one; the same.
        predicted: a number that comes from a Fisher.
        reshaped: that the shapes of the two do not fit.
        looks: see `TaskComparison`, by protocol and task.
        available: likewise.
        wanted: likewise.

    Raises:
        SuiteError: they are of different suites, tasks, data or examples; it says which.

    >>> a = Outcomes.predicted(np.zeros(4), np.array([0, 0, 1, 1]), model="a", task="t", protocol="oldhead")
    >>> b = Outcomes.predicted(np.ones(4), np.array([0, 0, 1, 1]), model="b", task="t", protocol="oldhead")
    >>> found = compare([a], [b]).tasks[0]
    >>> found.difference.mean, found.negative.percent, found.positive.percent
    (0.0, 50.0, 50.0)
    """
    before, after = _grouped(old, "old"), _grouped(new, "new")
    if before.keys() != after.keys():
        only = sorted(before.keys() ^ after.keys())[0]
        raise SuiteError("only one of the models was measured", where=" on ".join(only), expected="both, or neither")
    if not before:
        raise SuiteError("nothing to compare", expected="outcomes of two models")
    suites = {o.suite for group in (*before.values(), *after.values()) for o in group.values()}
    if len(suites) > 1:
        raise SuiteError(
            "scores of different suites do not compare",
            got=" and ".join(s[:12] or "no suite" for s in sorted(suites)),
            hint="measure both models by one version of the suite",
        )
    tasks = []
    for key in sorted(before):
        found = _task(before[key], after[key])
        tasks.append(
            TaskComparison(
                **found,
                looks=(looks or {}).get(key, (1.0,)),
                available=(available or {}).get(key),
                wanted=(wanted or {}).get(key),
            )
        )
    ids = [",".join(sorted({o.model for g in groups.values() for o in g.values()})) for groups in (before, after)]
    return Comparison(
        old=ids[0], new=ids[1], suite=suites.pop(), tasks=tuple(tasks), predicted=predicted, reshaped=reshaped
    )


def _grouped(outcomes: Iterable[Outcomes], side: str) -> dict[Key, dict[int, Outcomes]]:
    found: dict[Key, dict[int, Outcomes]] = {}
    for one in outcomes:
        group = found.setdefault((one.protocol, one.task), {})
        if one.seed in group:
            raise SuiteError(
                f"the {side} model was measured twice", where=f"{one.protocol} on {one.task}", got=f"seed {one.seed}"
            )
        group[one.seed] = one
    return found


def _task(old: Mapping[int, Outcomes], new: Mapping[int, Outcomes]) -> dict[str, Any]:
    """What `TaskComparison` is filled with, but for what was planned."""
    first = next(iter(old.values()))
    where = f"{first.protocol} on {first.task}"
    if old.keys() != new.keys():
        raise SuiteError("models are paired by seed", where=where, got=sorted(new), expected=sorted(old))
    seeds = tuple(sorted(old))
    order = np.sort(first.examples)
    pairs = [(_ordered(old[s]), _ordered(new[s])) for s in seeds]
    for one in (o for pair in pairs for o in pair):
        for what, got, expected in (
            ("the task's data differ", one.task_id[:12], first.task_id[:12]),
            ("the metric differs", one.metric, first.metric),
        ):
            if got != expected:
                raise SuiteError(what, where=where, got=got, expected=expected)
        if not np.array_equal(one.examples, order):
            raise SuiteError(
                "the models saw different examples",
                where=where,
                got=f"{len(one)} of seed {one.seed}",
                expected=len(order),
            )
    before, after = [a for a, _ in pairs], [b for _, b in pairs]
    said: dict[str, Any] = {
        "task": first.task,
        "protocol": first.protocol,
        "metric": first.metric,
        "seeds": seeds,
        "n": len(order),
        "old": float(np.mean([o.value for o in before])),
        "new": float(np.mean([o.value for o in after])),
        "divergence": divergence(before, after),
    }
    if first.classes:
        lost = float(np.mean([np.sum(a.right & ~b.right) for a, b in pairs]))
        won = float(np.mean([np.sum(~a.right & b.right) for a, b in pairs]))
        said |= {"negative": Rate(lost, len(order)), "positive": Rate(won, len(order))}
        if len(seeds) == 1 and first.metric == "accuracy":
            return said | {"difference": Matched(int(won), int(lost), len(order))}
    return said | {"difference": estimate(before, after)}


def _ordered(outcomes: Outcomes) -> Outcomes:
    """Examples in the order of their numbers: the order in which they were measured does not matter."""
    order = np.argsort(outcomes.examples, kind="stable")
    return outcomes if np.array_equal(order, np.arange(len(order))) else outcomes.take(order)
