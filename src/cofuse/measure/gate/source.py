"""Where a gate's outcomes come from: linear heads batch by batch, all else measured once and handed out in pieces."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...checkpoint import Checkpoint
from ...errors import SuiteError
from ...progress import SILENT, Progress
from ...tasks import Task, draw_rows
from ...tasks.probe import Probe, Probing, features
from ..evaluation.evaluating import Model, evaluate, opened
from ..evaluation.features import Features
from ..evaluation.protocols import DRAWS, ProbeProtocol, outcomes_of
from ..evaluation.records import Records
from ..evaluation.suite import Measure, OpenSuite
from ..outcomes import Outcomes
from .comparison import Key
from .sequential import Batch, Item

Rows = npt.NDArray[np.int64]
Pair = tuple[list[Outcomes], list[Outcomes]]

# Keeps the order of test examples apart from draws of training examples.
_ORDER = 0x6A7E


class Source:
    """Outcomes of two models on a suite, by batches.

    Args:
        old: the model that is to be replaced; old heads are fitted on its body.
        new: the candidate.
        suite: opened.
        records: of evaluations; what has one is not measured again.
        cache: a folder for features of frozen bodies; none are kept when None.
        jobs: processes for what is finetuned.
        progress: told of evaluations.
    """

    def __init__(
        self,
        old: Model,
        new: Model,
        suite: OpenSuite,
        records: Records,
        *,
        cache: Path | None = None,
        jobs: int = 1,
        progress: Progress = SILENT,
    ) -> None:
        self.old, self.new, self.suite, self.records = old, new, suite, records
        self._jobs, self._progress = jobs, progress
        self._measures = {(m.protocol, m.task.name): m for m in suite.measures}
        self._cache = None if cache is None else Features(cache, suite.measures[0].threads)
        self._heads: dict[tuple[Key, str, int], Probe] = {}
        self._whole: dict[Key, Pair] = {}

    def items(self) -> list[Item]:
        """What can be evaluated. An example's cost is its length in characters, where it is a text."""
        return [
            Item(m.protocol, m.task.name, len(m.task.examples("test").first(m.settings.test)), _cost(m.task))
            for m in self.suite.measures
        ]

    def __call__(self, batch: Batch) -> Pair:
        """Outcomes of a batch, of the old and of the new model, one a seed."""
        key = (batch.protocol, batch.task)
        rows = self._order(key)[batch.start : batch.stop]
        if isinstance(self._measures[key].settings, ProbeProtocol):
            return self._probed(key, self.old, rows), self._probed(key, self.new, rows)
        if key not in self._whole:
            self._whole[key] = self._evaluated(self._measures[key])
        old, new = self._whole[key]
        return [o.take(rows) for o in old], [o.take(rows) for o in new]

    def _order(self, key: Key) -> Rows:
        """Test examples in a drawn order, always the same: not every test split is shuffled."""
        measure = self._measures[key]
        count = len(measure.task.examples("test").first(measure.settings.test))
        return np.random.default_rng(_ORDER).permutation(count)

    def _probed(self, key: Key, model: Model, rows: Rows) -> list[Outcomes]:
        measure = self._measures[key]
        task, settings = measure.task, _probe_settings(measure)
        test = task.examples("test").take(rows)
        vectors = self._features(opened(model), task, "test", rows, settings.probing)
        found = []
        for seed in self.suite.seeds_of(measure):
            head = self._head(key, self.old if measure.protocol == "oldhead" else model, seed)
            logits = None
            if not task.what.continuous:
                weight, bias = head.linear(task.outputs)
                logits = vectors @ weight.T + bias
            said = outcomes_of(measure.protocol, task, seed, head.predict(vectors), test, logits)
            found.append(replace(said, model=model.content, suite=self.suite.hash, examples=rows))
        return found

    def _head(self, key: Key, body: Model, seed: int) -> Probe:
        place = (key, body.content, seed)
        if place not in self._heads:
            measure = self._measures[key]
            settings, train = _probe_settings(measure), measure.task.examples("train")
            rows = np.sort(draw_rows(train, settings.examples, [DRAWS, seed, 0]))
            vectors = self._features(opened(body), measure.task, "train", rows, settings.probing)
            self._heads[place] = Probe(measure.task, vectors, train.labels[rows], settings.probing)
        return self._heads[place]

    def _features(
        self, body: Checkpoint, task: Task, split: str, rows: Rows, probing: Probing
    ) -> npt.NDArray[np.float32]:
        if self._cache is not None:
            return self._cache.of(body, task, split, rows, probing)  # type: ignore[arg-type]
        return features(body, task, task.examples(split).take(rows), probing)  # type: ignore[arg-type]

    def _evaluated(self, measure: Measure) -> Pair:
        suite = replace(self.suite, measures=(measure,))
        done = evaluate([self.old, self.new], suite, self.records, jobs=self._jobs, progress=self._progress)
        if done.failures:
            raise done.failures[0].error
        both = [[self.records.outcomes(r) for r in done.records[m.name]] for m in (self.old, self.new)]
        old, new = ([replace(o, suite=self.suite.hash) for o in side] for side in both)
        return old, new


def _probe_settings(measure: Measure) -> ProbeProtocol:
    if not isinstance(measure.settings, ProbeProtocol):
        raise SuiteError("not a protocol of linear heads", where=measure.task.name, got=measure.protocol)
    return measure.settings


def _cost(task: Task) -> float:
    """Mean characters of a text among the first examples; 1 where there are none."""
    inputs = task.examples("test").first(100).inputs
    columns = [column for name, column in inputs.items() if name.startswith("text")]
    return max(1.0, sum(len(text) for column in columns for text in column) / max(1, len(next(iter(columns), [1]))))
