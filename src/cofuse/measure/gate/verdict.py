"""Pass, block or undecided: a pure function of a comparison and a policy, one row of `RULES` a question.

Every rule asks for a bound on one number, shows by its interval that the bound holds (`pass`) or is broken (`block`), or
shows neither (`undecided`). One broken bound blocks; all must hold to pass.

What is controlled: the probability that anything is blocked although no task broke its bound is at most half of what the
confidence leaves, over all tasks together (Holm). The probability that all passes although some task broke its bound is
at most as much, without a correction: passing takes every task to be shown good (an intersection-union test; Berger,
Technometrics 24, 1982).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from .comparison import Comparison, TaskComparison
from .estimate import Estimate
from .matched import Matched, Rate
from .policy import Policy
from .size import planned, tellable
from .spending import boundary
from .tails import critical

State: TypeAlias = Literal["pass", "undecided", "block"]
Step: TypeAlias = Literal["patch", "minor", "major"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What one rule says of one task, or of all (task `*`)."""

    rule: str
    protocol: str
    task: str
    state: State
    words: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """The decision, why, and what it means for the version.

    Attributes:
        state: `pass`, `block` or `undecided`.
        step: `patch`: few flips, old heads valid; `minor`: old heads valid; `major`: heads must be fitted anew. None where
            old heads were not run or nothing is decided.
        findings: of every rule.
        reasons: words of the findings that decided.
    """

    state: State
    step: Step | None
    findings: tuple[Finding, ...]
    reasons: tuple[str, ...]


def judge(comparison: Comparison, policy: Policy) -> Verdict:
    """Apply a policy.

    >>> from .comparison import compare
    >>> from ..outcomes import Outcomes
    >>> import numpy as np
    >>> same = [Outcomes.predicted(np.ones(600), np.ones(600), model="m", task="t", protocol="oldhead")]
    >>> judge(compare(same, same), Policy()).state, judge(compare(same, same), Policy()).step
    ('pass', 'patch')
    """
    findings = tuple(f for rule in RULES for f in rule(comparison, policy))
    states = {f.state for f in findings}
    state: State = "block" if "block" in states else "undecided" if "undecided" in states else "pass"
    deciding = tuple(f.words for f in findings if f.state == state)
    counted = _counted(comparison, policy)
    if state == "undecided" and policy.allow_if_mean_rises:
        mean, low, high = comparison.mean(_mean_critical(counted, policy.tail), counted)
        if low > 0:
            state, deciding = "pass", (f"the mean rises by {mean:.2f} points ({low:+.2f} to {high:+.2f})",)
    elif state == "pass":
        deciding = _summed_up(comparison, policy)
    return Verdict(state, _step(comparison, policy, state), findings, deciding)


def _task_drops(comparison: Comparison, policy: Policy) -> Iterator[Finding]:
    """Whether a task lost more than its margin."""
    tasks = _counted(comparison, policy)
    z = {t: t.difference.z(policy.margin(t.task)) for t in tasks}
    broken = _holm(z, policy.tail)
    for t in tasks:
        margin = policy.margin(t.task)
        state: State = "block" if t in broken else "pass" if z[t] > boundary(t.looks, policy.tail) else "undecided"
        yield Finding("drop", t.protocol, t.task, state, _drop_words(t, margin, state, policy, len(tasks)))


def _holm(z: Mapping[TaskComparison, float], tail: float) -> set[TaskComparison]:
    """Tasks whose margin is broken: the most broken is tested at tail / k, the next at tail / (k - 1), until one fails.

    Source: Holm, Scandinavian Journal of Statistics 6 (1979).
    """
    order = sorted(z, key=lambda t: (z[t], t.protocol, t.task))
    broken: set[TaskComparison] = set()
    for rank, t in enumerate(order):
        if not z[t] < -boundary(t.looks, tail / (len(order) - rank)):
            break
        broken.add(t)
    return broken


def _mean_drops(comparison: Comparison, policy: Policy) -> Iterator[Finding]:
    """Whether the mean over tasks lost more than its margin."""
    tasks = _counted(comparison, policy)
    if len([t for t in tasks if t.points]) < 2:
        return
    mean, low, high = comparison.mean(_mean_critical(tasks, policy.tail), tasks)
    state = _bounded(-high, -low, policy.max_mean_drop)
    words = f"mean over tasks: {mean:+.2f} points ({low:+.2f} to {high:+.2f}), may lose {policy.max_mean_drop:g}"
    yield Finding("mean", "*", "*", state, words)


def _worst(comparison: Comparison, policy: Policy) -> Iterator[Finding]:
    """Whether any task seems to lose more than it ever should, confident or not."""
    tasks = [t for t in _counted(comparison, policy) if t.points]
    if policy.max_worst_drop is None or not tasks:
        return
    worst = min(tasks, key=lambda t: (t.difference.mean, t.task))
    broken = worst.difference.mean < -policy.max_worst_drop
    # An estimate has no error that could be spent: it counts when all that was planned is taken.
    state: State = "undecided" if min(t.looks[-1] for t in tasks) < 1 else "block" if broken else "pass"
    words = (
        f"{_name(worst)}: worst task, {worst.difference.mean:+.2f} points, may seem to lose {policy.max_worst_drop:g}"
    )
    yield Finding("worst", worst.protocol, worst.task, state, words)


def _flips(comparison: Comparison, policy: Policy) -> Iterator[Finding]:
    """Whether more examples went from right to wrong than the budget has."""
    tasks = _counted(comparison, policy)
    for t in tasks:
        budget = policy.flips(t.task)
        if budget is None or t.negative is None:
            continue
        low, high = _bounds(t.negative, t, policy.tail, len(tasks))
        words = f"{_name(t)}: {t.negative.percent:.2f} % right before and wrong now ({low:.2f} to {high:.2f}), budget {budget:g} %"
        yield Finding("flips", t.protocol, t.task, _bounded(low, high, budget), words)


def _divergences(comparison: Comparison, policy: Policy) -> Iterator[Finding]:
    """Whether the outputs moved further than they may."""
    tasks = _counted(comparison, policy)
    for t in tasks:
        most = policy.kl(t.task)
        if most is None:
            continue
        if t.divergence is None:
            yield Finding("kl", t.protocol, t.task, "undecided", f"{_name(t)}: no log-probabilities, so no KL")
            continue
        low, high = _bounds(t.divergence, t, policy.tail, len(tasks))
        words = f"{_name(t)}: KL {t.divergence.mean:.4g} nats an example ({low:.4g} to {high:.4g}), at most {most:g}"
        yield Finding("kl", t.protocol, t.task, _bounded(low, high, most), words)


def _predicted(comparison: Comparison, policy: Policy) -> Iterator[Finding]:
    """Whether a Fisher predicts more change than there may be."""
    if policy.max_predicted is None:
        return
    if comparison.predicted is None:
        yield Finding("predicted", "*", "*", "undecided", "no Fisher was given, so no change is predicted")
        return
    state: State = "block" if comparison.predicted > policy.max_predicted else "pass"
    words = f"predicted change {comparison.predicted:.4g} nats an example, at most {policy.max_predicted:g}"
    yield Finding("predicted", "*", "*", state, words)


def _shapes(comparison: Comparison, policy: Policy) -> Iterator[Finding]:
    """Whether old heads fit at all."""
    if comparison.reshaped:
        yield Finding("shapes", "*", "*", "block", "the shapes changed: no old head fits the new model")


RULES: tuple[Callable[[Comparison, Policy], Iterator[Finding]], ...] = (
    _shapes,
    _task_drops,
    _mean_drops,
    _worst,
    _flips,
    _divergences,
    _predicted,
)


def _bounds(found: Rate | Estimate, t: TaskComparison, tail: float, tests: int) -> tuple[float, float]:
    """The bound that blocks, corrected for the number of tasks, and the one that lets pass, which needs no correction."""
    low, _ = found.interval(boundary(t.looks, tail / tests))
    _, high = found.interval(boundary(t.looks, tail))
    return low, high


def _bounded(low: float, high: float, most: float) -> State:
    return "block" if low > most else "pass" if high <= most else "undecided"


def _counted(comparison: Comparison, policy: Policy) -> list[TaskComparison]:
    return [t for t in comparison.tasks if policy.counts(t.task)]


def _mean_critical(tasks: Sequence[TaskComparison], tail: float) -> float:
    """Tasks may be at different looks; the one that is furthest behind says how much of the error is spent."""
    looks = min((t.looks for t in tasks), key=lambda looks: looks[-1], default=(1.0,))
    return boundary(looks, tail)


def _name(t: TaskComparison) -> str:
    return t.task if t.protocol == "oldhead" else f"{t.task} ({t.protocol})"


def _drop_words(t: TaskComparison, margin: float, state: State, policy: Policy, tests: int) -> str:
    low, high = t.difference.interval(critical(policy.tail))
    said = f"{_name(t)}: {t.difference.mean:+.2f} points ({low:+.2f} to {high:+.2f}), may lose {margin:g}"
    if state != "undecided":
        return said
    told = {"confidence": policy.confidence, "power": policy.power, "tests": tests}
    wanted = t.wanted or planned(t.difference, t.n, margin, **told)  # type: ignore[arg-type]
    if t.n >= wanted:
        return f"{said}: too near to it to tell on {t.n:,} examples"
    said += f": needs about {wanted:,} examples, has {t.n:,}"
    if isinstance(t.difference, Matched):
        said += f", which tell {tellable(t.n, t.difference.discordance, **told):.1f} points"  # type: ignore[arg-type]
    return said


def _summed_up(comparison: Comparison, policy: Policy) -> tuple[str, ...]:
    tasks = _counted(comparison, policy)
    if not tasks:
        return ("no task decides anything",)
    mean, low, high = comparison.mean(critical(policy.tail), tasks)
    worst = min(tasks, key=lambda t: (t.difference.mean, t.task))
    said = [
        f"every task is shown to lose less than it may; the mean moves by {mean:+.2f} points ({low:+.2f} to {high:+.2f})"
    ]
    said.append(f"worst task: {_name(worst)}, {worst.difference.mean:+.2f} points")
    return tuple(said)


def _step(comparison: Comparison, policy: Policy, state: State) -> Step | None:
    """The version step: what users of old heads have to do.

    Source: the compatibility scheme of docs/gate.md; old heads are the interface, as in semantic versioning.
    """
    heads: Sequence[TaskComparison] = [t for t in comparison.tasks if t.protocol == "oldhead"]
    if comparison.reshaped or (heads and state == "block"):
        return "major"
    if not heads or state != "pass":
        return None
    few = all(t.negative is None or t.negative.percent <= policy.patch_flips for t in heads)
    return "patch" if few else "minor"
