"""Models joined to their scores: what was measured, of whom, by what, for which seeds."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import StudyError
from ..evolve.records import BegunRecord, ModelRecord, ScoreRecord, by_kind
from .words import PROTOCOLS

SUITES = ("unseen", "seen")
PRETRAINED = "pretrained"
MULTITASK = "multitask"
FUSE_ONCE = "fuse once"
# A pseudo-model: at each task, seed and draw the mean over all `intertrain:TASK` models.
INTERTRAIN_MEAN = "intertrain mean"
_INTERTRAIN = "intertrain:"
_ROUND = re.compile(r"round (\d+)")


@dataclass(frozen=True, slots=True)
class Key:
    """What one score record is about."""

    model: str
    suite: str
    protocol: str
    task: str
    seed: int


@dataclass(frozen=True, slots=True)
class Cell:
    """One score record: a value a draw, in percent."""

    metric: str
    tested: int
    values: tuple[float, ...]


class Scores:
    """The scores of a run, by model.

    Args:
        records: of a run, which may still be going on; scores of bodies that no model record names are left out.

    Attributes:
        models: names, in the order of a report; `intertrain mean` is last when it is there.
        seeds: of the study.
        suites: tasks of each suite, in the study's order.
        study: the study's document, empty when the run's beginning is not among the records.
    """

    def __init__(self, records: Sequence[Any]) -> None:
        records = tuple(records)
        begun: list[BegunRecord] = by_kind(records, "begun")
        self.study: dict[str, Any] = begun[-1].study if begun else {}
        self.versions: dict[str, str] = begun[-1].versions if begun else {}
        models: list[ModelRecord] = by_kind(records, "model")
        measured: list[ScoreRecord] = by_kind(records, "score")
        self.seeds = self._find_seeds(models, measured)
        self.suites = self._find_suites(measured)
        self._commits = {(m.name, m.seed): m.commit for m in models}
        self._cells = _join(models, measured)
        self._average_intertraining()
        self.models = tuple(sorted({k.model for k in self._cells}, key=self._place))

    def protocols(self, suite: str) -> tuple[str, ...]:
        """Protocols that anything of a suite was measured by; workers finish in any order, reports have one."""
        known = list(PROTOCOLS)
        found = {k.protocol for k in self._cells if k.suite == suite}
        return tuple(sorted(found, key=lambda p: (known.index(p) if p in known else len(known), p)))

    def commit(self, model: str, seed: int) -> str:
        """The commit that holds a model; empty for the pseudo-model."""
        return self._commits.get((model, seed), "")

    def cell(self, key: Key) -> Cell | None:
        """One record, or None when that is not measured."""
        return self._cells.get(key)

    def finished(self, model: str, suite: str, protocol: str, tasks: Sequence[str]) -> tuple[int, ...]:
        """Seeds for which a model is measured on every one of `tasks`."""
        if not tasks:
            return ()
        return tuple(s for s in self.seeds if all(Key(model, suite, protocol, t, s) in self._cells for t in tasks))

    def values(
        self, model: str, suite: str, protocol: str, tasks: Sequence[str], seeds: Sequence[int]
    ) -> npt.NDArray[np.float64]:
        """Scores [task, seed, draw]; all must be finished.

        Raises:
            StudyError: measurements of one protocol have different numbers of draws.
        """
        cells = [[self._cells[Key(model, suite, protocol, t, s)] for s in seeds] for t in tasks]
        draws = {len(c.values) for row in cells for c in row}
        if len(draws) > 1:
            raise StudyError(
                "measurements of one protocol have different numbers of draws",
                where=f"{model}, {suite}, {protocol}",
                got=", ".join(map(str, sorted(draws))),
                hint="were the records of two runs put together?",
            )
        return np.array([[c.values for c in row] for row in cells], dtype=np.float64)

    def metric(self, model: str, suite: str, protocol: str, tasks: Sequence[str]) -> str:
        """The metric that tasks have in common, else `mean`."""
        found = {
            k.metric for t in tasks for s in self.seeds if (k := self._cells.get(Key(model, suite, protocol, t, s)))
        }
        return found.pop() if len(found) == 1 else "mean"

    def tested(self, suite: str, task: str) -> tuple[int, ...]:
        """Test examples that scores on a task rest on; more than one number when protocols differ."""
        return tuple(sorted({c.tested for k, c in self._cells.items() if k.suite == suite and k.task == task}))

    def metrics(self, suite: str, task: str) -> tuple[str, ...]:
        """Metrics that a task is scored by."""
        return tuple(sorted({c.metric for k, c in self._cells.items() if k.suite == suite and k.task == task}))

    def rounds(self) -> tuple[str, ...]:
        """The rounds that anything is measured of, first to last."""
        return tuple(m for m in self.models if _ROUND.fullmatch(m))

    def last(self, suite: str, protocol: str) -> str | None:
        """The last round that as many seeds have finished as have finished any; None before the first.

        While a study runs, its seeds are at different rounds; a figure of the seed that is ahead would hide how much
        seeds differ.
        """
        tasks = self.suites[suite]
        done = [(len(self.finished(m, suite, protocol, tasks)), i, m) for i, m in enumerate(self.rounds())]
        best = max(done, default=(0, 0, ""))
        return best[2] if best[0] else None

    @property
    def unfinished(self) -> int:
        """Measurements that a model lacks although others of the same model, suite and protocol are there."""
        begun = {(k.model, k.suite, k.protocol) for k in self._cells if k.model != INTERTRAIN_MEAN}
        wanted = (Key(m, s, p, task, seed) for m, s, p in begun for task in self.suites[s] for seed in self.seeds)
        return sum(key not in self._cells for key in wanted)

    def _find_seeds(self, models: Sequence[ModelRecord], measured: Sequence[ScoreRecord]) -> tuple[int, ...]:
        # The base is committed as seed 0 whatever the seeds are, so models alone do not tell.
        said = self.study.get("seeds")
        return tuple(said) if said else tuple(sorted({r.seed for r in measured} or {m.seed for m in models}))

    def _find_suites(self, measured: Sequence[ScoreRecord]) -> dict[str, tuple[str, ...]]:
        """The study knows its tasks before they are measured: the mean over half of a suite is not the suite's."""
        names = list(self.study.get("task_ids", ()))
        seen = len(self.study.get("seen", ()))
        planned = {"seen": names[:seen], "unseen": names[seen:]}
        return {
            suite: tuple(dict.fromkeys([*planned[suite], *(r.task for r in measured if r.suite == suite)]))
            for suite in SUITES
        }

    def _average_intertraining(self) -> None:
        """Add the pseudo-model, where every intertrained model is measured."""
        baselines = self.study.get("baselines") or {}
        planned = self.study.get("task_ids") and baselines.get("intertrain")
        wanted = {f"{_INTERTRAIN}{task}" for task in self.suites["seen"]} if planned else set()
        wanted |= {k.model for k in self._cells if k.model.startswith(_INTERTRAIN)}
        if not wanted:
            return
        models = sorted(wanted)
        for key in [k for k in self._cells if k.model == models[0]]:
            cells = [self._cells.get(Key(m, key.suite, key.protocol, key.task, key.seed)) for m in models]
            there = [c for c in cells if c is not None]
            if len(there) < len(models) or len({len(c.values) for c in there}) > 1:
                continue
            means = np.mean([c.values for c in there], axis=0)
            mean = Cell(there[0].metric, there[0].tested, tuple(float(v) for v in means))
            self._cells[Key(INTERTRAIN_MEAN, key.suite, key.protocol, key.task, key.seed)] = mean

    def _place(self, model: str) -> tuple[int, int, str]:
        """Where a model stands in a report."""
        if number := round_number(model):
            return 1, number, ""
        fixed = {PRETRAINED: 0, MULTITASK: 2, FUSE_ONCE: 3, INTERTRAIN_MEAN: 6}
        if model in fixed:
            return fixed[model], 0, ""
        seen = self.suites["seen"]
        task = model.removeprefix(_INTERTRAIN)
        return (4, seen.index(task), "") if task != model and task in seen else (5, 0, model)


def round_number(model: str) -> int | None:
    """The round that a model is of.

    >>> round_number("round 12"), round_number("fuse once")
    (12, None)
    """
    found = _ROUND.fullmatch(model)
    return int(found[1]) if found else None


def _join(models: Sequence[ModelRecord], measured: Sequence[ScoreRecord]) -> dict[Key, Cell]:
    # Two names may have one content (a single round over one step is a fuse once): both get the scores.
    names: dict[tuple[str, int], list[str]] = {}
    for model in models:
        known = names.setdefault((model.content, model.seed), [])
        if model.name not in known:
            known.append(model.name)
    return {
        Key(name, r.suite, r.protocol, r.task, r.seed): Cell(r.metric, r.tested, r.values)
        for r in measured
        for name in names.get((r.content, r.seed), ())
    }
