"""Every number a report shows: means with intervals, and paired differences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import StudyError
from ..measure.intervals import Interval, interval
from .scores import FUSE_ONCE, INTERTRAIN_MEAN, MULTITASK, PRETRAINED, SUITES, Scores

ALL_TASKS = "*"


@dataclass(frozen=True, slots=True)
class Row:
    """The mean score of a model on a task, or on a suite (task `*`), in percent, with its 95 % interval."""

    model: str
    commit: str  # of the first seed; seeds have commits of their own
    suite: str
    task: str
    protocol: str
    metric: str
    mean: float
    low: float
    high: float
    n: int  # seeds times draws

    @property
    def bare(self) -> bool:
        """Whether there is no interval: nothing varied that could have been resampled."""
        return self.low == self.high


@dataclass(frozen=True, slots=True)
class Difference:
    """`model` minus `minus`, paired by seed, task and draw, in points, with its 95 % interval."""

    model: str
    minus: str
    suite: str
    task: str
    protocol: str
    metric: str
    mean: float
    low: float
    high: float
    n: int

    @property
    def bare(self) -> bool:
        """Whether there is no interval: nothing varied that could have been resampled."""
        return self.low == self.high

    @property
    def clear(self) -> bool:
        """Whether there is an interval, and it does not include zero."""
        return not self.bare and (self.low > 0 or self.high < 0)


@dataclass(frozen=True)
class Summary:
    """What the tables of a run show.

    Args:
        scores: that everything was computed from.
        rows: of every model.
        differences: of every model to `pretrained`, and of the last round to the baselines.
        intertraining: rows of the pseudo-model `intertrain mean`; not in the document.
    """

    scores: Scores
    rows: tuple[Row, ...]
    differences: tuple[Difference, ...]
    intertraining: tuple[Row, ...] = ()

    def document(self) -> dict[str, Any]:
        """What `summary.json` holds: plain values, the same for the same records."""
        return {
            "what": "evolve",
            "rows": [asdict(r) for r in self.rows],
            "differences": [asdict(d) for d in self.differences],
        }

    def row(self, model: str, suite: str, task: str, protocol: str) -> Row | None:
        """A mean, or None when it is not measured."""
        return self._rows.get((model, suite, task, protocol))

    def difference(self, model: str, minus: str, suite: str, task: str, protocol: str) -> Difference | None:
        """A difference, or None when a side is not measured."""
        return self._differences.get((model, minus, suite, task, protocol))

    @cached_property
    def _rows(self) -> dict[tuple[str, str, str, str], Row]:
        return {(r.model, r.suite, r.task, r.protocol): r for r in (*self.rows, *self.intertraining)}

    @cached_property
    def _differences(self) -> dict[tuple[str, str, str, str, str], Difference]:
        return {(d.model, d.minus, d.suite, d.task, d.protocol): d for d in self.differences}


def summarize(records: Sequence[Any]) -> Summary:
    """Means, intervals and paired differences of a run that may still be going on.

    A row rests on the seeds for which all of it is measured: a task's on seeds that have the task, a suite's (`*`) on
    seeds that have every task of the suite. Intervals are 95 % and from a bootstrap over seeds and draws, and over
    tasks for a suite; differences are paired before they are resampled.

    Args:
        records: of `records.jsonl`, as `cofuse.evolve.read_records` gives them.

    Raises:
        StudyError: the records contradict each other.

    >>> from cofuse.evolve.records import ModelRecord, ScoreRecord
    >>> model = ModelRecord(id="m", name="pretrained", seed=0, commit="c0ffee", tree="t", content="w")
    >>> score = ScoreRecord(id="s", content="w", seed=0, suite="unseen", task="digits", protocol="probe",
    ...                     metric="accuracy", values=(60.0, 70.0), tested=300, seconds=1.0)
    >>> row = summarize([model, score]).rows[0]
    >>> row.task, row.mean, row.n
    ('digits', 65.0, 2)
    """
    scores = Scores(records)
    rows: list[Row] = []
    means: list[Row] = []
    differences: list[Difference] = []
    for suite in SUITES:
        for protocol in scores.protocols(suite):
            for model in scores.models:
                into = means if model == INTERTRAIN_MEAN else rows
                into += _model_rows(scores, model, suite, protocol)
            for model, minus in _pairs(scores, suite, protocol):
                differences += _pair_differences(scores, model, minus, suite, protocol)
    return Summary(scores, tuple(rows), tuple(differences), tuple(means))


def seeds_interval(values: npt.NDArray[np.float64]) -> Interval:
    """Mean over all [task, seed, draw], with the interval over seeds and draws: these tasks, other runs.

    Tasks differ in how hard they are far more than runs do, so the interval of a mean score over resampled tasks says
    little about a curve.
    """
    return interval(values.mean(axis=0, keepdims=True))


def _pairs(scores: Scores, suite: str, protocol: str) -> Iterator[tuple[str, str]]:
    for model in scores.models:
        if model not in {PRETRAINED, INTERTRAIN_MEAN}:
            yield model, PRETRAINED
    last = scores.last(suite, protocol)
    if last is not None:
        for minus in (MULTITASK, FUSE_ONCE, INTERTRAIN_MEAN):
            yield last, minus


def _places(scores: Scores, suite: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """What a row is of, and the tasks that make it up."""
    for task in scores.suites[suite]:
        yield task, (task,)
    yield ALL_TASKS, scores.suites[suite]


def _model_rows(scores: Scores, model: str, suite: str, protocol: str) -> Iterator[Row]:
    for task, tasks in _places(scores, suite):
        seeds = scores.finished(model, suite, protocol, tasks)
        if seeds:
            found = interval(scores.values(model, suite, protocol, tasks, seeds))
            metric = scores.metric(model, suite, protocol, tasks)
            yield Row(model, scores.commit(model, seeds[0]), suite, task, protocol, metric, *_rounded(found))


def _pair_differences(scores: Scores, model: str, minus: str, suite: str, protocol: str) -> Iterator[Difference]:
    for task, tasks in _places(scores, suite):
        there = set(scores.finished(minus, suite, protocol, tasks))
        seeds = tuple(s for s in scores.finished(model, suite, protocol, tasks) if s in there)
        if seeds:
            ours = scores.values(model, suite, protocol, tasks, seeds)
            theirs = scores.values(minus, suite, protocol, tasks, seeds)
            if ours.shape != theirs.shape:
                raise StudyError(
                    "two models were measured with different numbers of draws",
                    where=f"{suite}, {protocol}",
                    got=f"{ours.shape[2]} of {model}, {theirs.shape[2]} of {minus}",
                    hint="were the records of two runs put together?",
                )
            found = interval(ours - theirs)
            metric = scores.metric(model, suite, protocol, tasks)
            yield Difference(model, minus, suite, task, protocol, metric, *_rounded(found))


def _rounded(found: Interval) -> tuple[float, float, float, int]:
    # As many digits as records keep: sums in another order may differ in the last ones.
    return round(found.mean, 6), round(found.low, 6), round(found.high, 6), found.n
