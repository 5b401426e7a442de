"""Which base model to start from: gains over the pretrained model of the same architecture, from records alone.

    gain(m, t) = score of m on t - score of its pretrained model on t        by one protocol, seed by seed

Source: "Where to start? Analyzing the potential value of intermediate models", arXiv 2211.00107.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

import numpy as np

from ...checkpoint import Checkpoint
from ...checkpoint.body import best_prefix, with_prefix
from ...errors import SuiteError
from ..evaluation.evaluating import Model
from ..evaluation.records import Record, Records
from ..evaluation.suite import Measure, OpenSuite
from ..gate.comparison import compare
from ..intervals import Interval, interval

_Z = 1.959963984540054  # 95 %, two-sided


@dataclass(frozen=True, slots=True)
class TaskGain:
    """One model on one task: its score, its gain in points, and the gain's 95 % interval over seeds and examples."""

    task: str
    metric: str
    score: float
    gain: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Ranked:
    """A model in a ranking.

    Attributes:
        model: its name.
        content: content id of its tensors.
        pretrained: name of the model that its gains are over.
        gain: mean over tasks and seeds, with the interval of a bootstrap over both.
        better: share of the tasks that gain.
        tasks: in the suite's order.
        seconds: that its measurements took.
    """

    model: str
    content: str
    pretrained: str
    gain: Interval
    better: float
    tasks: tuple[TaskGain, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class Ranking:
    """Models by one protocol: architecture by architecture, the best first."""

    protocol: str
    tasks: tuple[str, ...]
    seeds: int
    ranked: tuple[Ranked, ...]
    scores: Mapping[str, tuple[float, ...]]  # of the pretrained models, by name, task by task

    @property
    def architectures(self) -> tuple[str, ...]:
        """The pretrained models, by name."""
        return tuple(dict.fromkeys(r.pretrained for r in self.ranked))

    def of(self, pretrained: str) -> tuple[Ranked, ...]:
        """The models of an architecture, the best first."""
        return tuple(r for r in self.ranked if r.pretrained == pretrained)

    @property
    def best(self) -> dict[str, Ranked]:
        """The best model of each architecture."""
        return {name: self.of(name)[0] for name in self.architectures}

    @property
    def seconds(self) -> float:
        """That all measurements of the ranked models took."""
        return sum(r.seconds for r in self.ranked)

    @property
    def label(self) -> str:
        """What it is called: its protocol and, where they are few, its tasks."""
        said = ", ".join(self.tasks) if len(self.tasks) < 4 else f"{len(self.tasks)} tasks"
        return f"{self.protocol} on {said}"


@dataclass(frozen=True)
class Entry:
    """A model to rank, and the pretrained model of its architecture."""

    model: Model
    pretrained: Model


def entries(
    models: Sequence[Model], pretrained: Sequence[Model], opened: Mapping[str, Checkpoint] | None = None
) -> tuple[Entry, ...]:
    """Find for each model the pretrained one of its architecture: the same model type, names and shapes.

    Args:
        models: to be ranked.
        pretrained: one an architecture.
        opened: checkpoints by the models' names, where they are open already.

    Raises:
        SuiteError: a model has no pretrained one among these, or several.
    """
    known = opened or {}
    bases = [(p, known.get(p.name) or p.open()) for p in pretrained]
    found = []
    for model in models:
        mine = known.get(model.name) or model.open()
        fitting = [p for p, base in bases if same_architecture(mine, base)]
        if len(fitting) != 1:
            raise SuiteError(
                "several pretrained models are of one architecture"
                if fitting
                else "no pretrained model to compare with",
                where=model.name,
                got=", ".join(p.name for p in fitting or pretrained) or "none",
                expected=f"one of model type {mine.config.get('model_type')} and the same shapes",
                hint="say which: --pretrained M, once for each architecture",
            )
        found.append(Entry(model, fitting[0]))
    return tuple(found)


def same_architecture(model: Checkpoint, pretrained: Checkpoint) -> bool:
    """Whether a model has the body of a pretrained one: the model type, most of its names, and the shapes of these.

    Names are compared up to a class prefix; heads count for nothing.

    >>> import torch
    >>> from cofuse.checkpoint import Memory
    >>> base = Memory({"a": torch.zeros(2), "b": torch.zeros(3)})
    >>> tuned = Memory({"bert.a": torch.ones(2), "bert.b": torch.ones(3), "classifier.w": torch.ones(9)})
    >>> same_architecture(tuned, base), same_architecture(Memory({"a": torch.ones(4), "b": torch.ones(3)}), base)
    (True, False)
    """
    if model.config.get("model_type") != pretrained.config.get("model_type"):
        return False
    theirs = {*model.names(), *model.aliases}
    prefix = best_prefix(theirs, set(pretrained.names()))
    pairs = [(n, there) for n in pretrained.names() if (there := with_prefix(n, prefix)) in theirs]
    shared = sum(pretrained.spec(n).numel for n, _ in pairs)
    total = sum(pretrained.spec(n).numel for n in pretrained.names())
    return 2 * shared > total and all(
        pretrained.spec(n).shape == model.spec(there).shape for n, there in pairs if there is not None
    )


@dataclass
class _Known:
    """All records of some models, by model, measure and seed."""

    records: Records
    by_model: dict[str, dict[tuple[str, int], Record]] = field(default_factory=dict)

    def of(self, model: Model, measure: Measure, seeds: Sequence[int]) -> tuple[Record, ...] | None:
        """The records of a measure, one a seed; None where one is missing."""
        if model.name not in self.by_model:
            mine = (r for r in self.records.of(model.content) if r.files == model.files and r.old is None)
            self.by_model[model.name] = {(r.measure, r.seed): r for r in mine}
        found = [self.by_model[model.name].get((measure.id, seed)) for seed in seeds]
        return tuple(r for r in found if r is not None) if None not in found else None


def rank(entered: Sequence[Entry], suite: OpenSuite, records: Records) -> tuple[Ranking, ...]:
    """A ranking for each protocol of a suite that has a record of every model on every task; nothing is measured.

    Old heads rank nothing, since they are fitted on another model. The result does not depend on the models' order.

    Args:
        entered: with different names.
        suite: what the models are ranked by.
        records: where scores are looked for, whichever suite they were made for.
    """
    known = _Known(records)
    found = []
    for protocol in dict.fromkeys(m.protocol for m in suite.measures if m.protocol != "oldhead"):
        measures = [m for m in suite.measures if m.protocol == protocol]
        rows = [_ranked(entry, measures, suite, known) for entry in entered]
        whole = [r for r in rows if r is not None]
        if len(whole) == len(rows) > 0:
            whole.sort(key=lambda r: (r.pretrained, -r.gain.mean, r.content, r.model))
            bases = {e.pretrained.name: e.pretrained for e in entered}
            scores = {
                name: tuple(fmean(r.value for r in known.of(base, m, suite.seeds_of(m)) or ()) for m in measures)
                for name, base in sorted(bases.items())
            }
            tasks = tuple(m.task.name for m in measures)
            seeds = max(len(suite.seeds_of(m)) for m in measures)
            found.append(Ranking(protocol, tasks, seeds, tuple(whole), scores))
    return tuple(found)


def _ranked(entry: Entry, measures: Sequence[Measure], suite: OpenSuite, known: _Known) -> Ranked | None:
    gains, tasks, seconds = [], [], 0.0
    for measure in measures:
        seeds = suite.seeds_of(measure)
        pair = [known.of(m, measure, seeds) for m in (entry.pretrained, entry.model)]
        if pair[0] is None or pair[1] is None:
            return None
        before, after = pair[0], pair[1]
        gains.append([b.value - a.value for a, b in zip(before, after, strict=True)])
        tasks.append(_task_gain(entry, measure, before, after, known.records))
        seconds += sum(r.seconds for r in after)
    most = max(map(len, gains))
    # What seeds do not change counts for each of them.
    array = np.array([own if len(own) == most else own * most for own in gains])[:, :, None]  # [task, seed, 1]
    better = sum(t.gain > 0 for t in tasks) / len(tasks)
    name, content = entry.model.name, entry.model.content
    return Ranked(name, content, entry.pretrained.name, interval(array), better, tuple(tasks), seconds)


def _task_gain(
    entry: Entry, measure: Measure, before: Sequence[Record], after: Sequence[Record], records: Records
) -> TaskGain:
    """The gain on a task, paired by seed and example."""
    gain = fmean(b.value - a.value for a, b in zip(before, after, strict=True))
    low = high = gain
    if (entry.model.content, entry.model.files) != (entry.pretrained.content, entry.pretrained.files):
        # The measure's id says that the data agree; suites only say who asked.
        pairs = [[replace(records.outcomes(r), suite="") for r in side] for side in (before, after)]
        low, high = compare(*pairs).tasks[0].difference.interval(_Z)
    return TaskGain(measure.task.name, measure.metric, fmean(r.value for r in after), gain, low, high)
