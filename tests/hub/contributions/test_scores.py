"""Scores on the repository's suite, beside the base's: shown, and where the policy says so they decide."""

from __future__ import annotations

from typing import Any

import pytest

from cofuse.hub.database import Repository
from cofuse.hub.work import queue

from .bench import Bench, tuned
from .test_beside import policy


def with_suite(bench: Bench) -> None:
    with bench.hub.database.writing() as change:
        row = change.get_one(Repository, bench.row.id)
        row.suite, row.suite_hash = "{name: s, tasks: [t]}", "f" * 64


def score(bench: Bench, means: dict[str, float]) -> None:
    """Hand in scores, as the worker that measured them would."""
    while (job := queue.claim(bench.hub, "scorer", ("evaluate",))) is not None:
        mean = means[job.payload["commit"]]
        row: dict[str, Any] = {"protocol": "probe", "metric": "accuracy", "low": None, "high": None, "n": 3}
        rows = [{**row, "task": "t", "mean": mean}, {**row, "task": "*", "mean": mean}]
        queue.finish(bench.hub, job.id, job.fence, {"rows": rows, "failures": []})


@pytest.mark.parametrize(
    ("own", "state", "check"), [(81.5, "open", "pass"), (79.0, "open", "pass"), (60.0, "refused", "refuse")]
)
def test_where_scores_may_refuse_it_is_open_once_it_is_scored(bench: Bench, own: float, state: str, check: str) -> None:
    with_suite(bench)
    policy(bench, "{round: {contributions: 50}, screen: {evaluation: refuse, points: 5}}")
    number = bench.offered("ann", tuned(bench.base, 1))
    bench.work()
    seen = bench.look(number)
    assert seen["state"] == "received"
    score(bench, {bench.commit: 80.0, seen["commit"]: own})
    seen = bench.look(number)
    assert (seen["state"], seen["checks"]["evaluation"]["state"]) == (state, check)
    assert seen["checks"]["evaluation"]["detail"]["gain"] == pytest.approx(own - 80)


def test_where_they_only_warn_nothing_waits_for_them(bench: Bench) -> None:
    with_suite(bench)
    number = bench.offered("ann", tuned(bench.base, 1))
    bench.work()
    seen = bench.look(number)
    assert seen["state"] == "open"
    assert "evaluation" not in seen["checks"]
    score(bench, {bench.commit: 80.0, seen["commit"]: 60.0})
    seen = bench.look(number)
    assert (seen["state"], seen["checks"]["evaluation"]["state"]) == ("open", "warn")
    assert "-20.00 points" in seen["checks"]["evaluation"]["figure"]
