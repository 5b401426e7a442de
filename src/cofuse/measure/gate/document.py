"""What a gate gave, as plain values: `summary.json`, the lines of `records.jsonl`, what the page is made of."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from ...canonical import digest
from .comparison import Comparison
from .estimate import Estimate
from .gated import Gated
from .matched import Rate
from .policy import Policy
from .tails import critical

Plain = dict[str, Any]


def document(gated: Gated) -> Plain:
    """Everything that is shown of a gate; the same for the same outcomes and policy. Intervals are the policy's."""
    comparison, policy = gated.comparison, gated.policy
    z = critical(policy.tail)
    worst = comparison.worst
    return {
        "what": "gate",
        "rows": rows(gated),
        "verdict": {
            "state": gated.verdict.state,
            "step": gated.verdict.step,
            "reasons": list(gated.verdict.reasons),
            "findings": [asdict(f) for f in gated.verdict.findings],
        },
        "old": comparison.old,
        "new": comparison.new,
        "suite": gated.suite.document() | {"tasks": {}},
        "policy": policy.model_dump(mode="json"),
        "tasks": tasks(comparison, policy),
        "mean": _limits(*comparison.mean(z, [t for t in comparison.tasks if policy.counts(t.task)])),
        "worst": None if worst is None else {"task": worst.task, "protocol": worst.protocol},
        "predicted": comparison.predicted,
        "reshaped": comparison.reshaped,
        "evaluation": {
            "rapid": gated.rapid,
            "taken": gated.taken,
            "planned": gated.planned,
            "saved": round(gated.saved, 6),
        },
    }


def tasks(comparison: Comparison, policy: Policy) -> list[Plain]:
    """Each task's numbers, with its p-value of having lost more than its margin, by Holm."""
    z = critical(policy.tail)
    counted = [t for t in comparison.tasks if policy.counts(t.task)]
    adjusted = adjust([t.difference.drops(policy.margin(t.task)) for t in counted])
    p = {(t.protocol, t.task): a for t, a in zip(counted, adjusted, strict=True)}
    return [
        {
            "task": t.task,
            "protocol": t.protocol,
            "metric": t.metric,
            "seeds": list(t.seeds),
            "n": t.n,
            "available": t.available,
            "wanted": t.wanted,
            "old": _number(t.old),
            "new": _number(t.new),
            "difference": _limits(t.difference.mean, *t.difference.interval(z)),
            "margin": policy.margin(t.task),
            "p": _number(p.get((t.protocol, t.task), math.inf)),
            "negative": _rate(t.negative, z),
            "positive": _rate(t.positive, z),
            "kl": _estimated(t.divergence, z),
            "looks": [round(x, 6) for x in t.looks],
        }
        for t in comparison.tasks
    ]


def rows(gated: Gated) -> list[Plain]:
    """Scores of the two models: the rows that every summary has."""
    found = []
    for model in ("old", "new"):
        content = getattr(gated.comparison, model)
        for t in gated.comparison.tasks:
            value = getattr(t, model)
            low, high = value, value
            if t.metric == "accuracy":
                low, high = Rate(value * t.n / 100, t.n).interval(critical(0.025))
            found.append(
                {
                    "model": model,
                    "commit": "",
                    "content": content,
                    "suite": gated.suite.name,
                    "task": t.task,
                    "protocol": t.protocol,
                    "metric": t.metric,
                    **_limits(value, low, high),
                    "n": len(t.seeds),
                }
            )
    return found


def lines(gated: Gated) -> list[Plain]:
    """The records of a gate: what was asked, what each task gave, what was decided. Ids hash what is in them."""
    said = document(gated)
    asked = {k: said[k] for k in ("old", "new", "suite", "policy", "predicted")} | {"rapid": gated.rapid}
    found: list[Plain] = [{"kind": "gate", **asked}]
    found += [{"kind": "comparison", **t} for t in said["tasks"]]
    found.append({"kind": "verdict", **said["verdict"], **said["evaluation"]})
    gate_id = digest("gate", **asked)
    return [{"id": digest("gate line", gate=gate_id, line=line), **line} for line in found]


def adjust(p: list[float]) -> list[float]:
    """Holm's adjusted p-values: each is the smallest error of all tests together at which it is refused.

    >>> adjust([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p)), key=lambda i: p[i])
    found, so_far = [0.0] * len(p), 0.0
    for rank, i in enumerate(order):
        so_far = max(so_far, min(1.0, (len(p) - rank) * p[i]))
        found[i] = so_far
    return found


def _limits(mean: float, low: float, high: float) -> Plain:
    return {"mean": _number(mean), "low": _number(low), "high": _number(high)}


def _rate(rate: Rate | None, z: float) -> Plain | None:
    return None if rate is None else _limits(rate.percent, *rate.interval(z))


def _estimated(found: Estimate | None, z: float) -> Plain | None:
    return None if found is None else _limits(found.mean, *found.interval(z))


def _number(value: float) -> float | None:
    # As many digits as records keep: sums in another order may differ in the last ones.
    return round(value, 6) if math.isfinite(value) else None
