"""Held-out scores of mixtures: the validation split chooses, so that the test split can still be believed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ...canonical import digest
from ...checkpoint import Checkpoint
from ...errors import SuiteError
from ...fuse import Recipe, fuse_recipe
from ...progress import SILENT, Progress
from ...tasks import Examples, Task
from ...tasks.task import Split
from ..evaluation.evaluating import Model, Opener, evaluate
from ..evaluation.records import Records
from ..evaluation.suite import OpenSuite


class HeldOut(Task):
    """A task that is tested on its validation split, under an id of its own: such scores are never taken for tests."""

    def examples(self, split: Split) -> Examples:
        """All rows of a split; those of the validation split where the test split is asked for."""
        return super().examples("validation" if split == "test" else split)

    @property
    def id(self) -> str:
        """A hash of what the task is, of its data, and of the split."""
        return digest("held out", task=super().id)


def held_out(suite: OpenSuite) -> OpenSuite:
    """The same suite, tested on the validation splits."""
    tasks = {t.name: HeldOut.model_construct(_fields_set=t.model_fields_set, **dict(t)) for t in suite.tasks}
    measures = tuple(replace(m, task=tasks[m.task.name]) for m in suite.measures)
    return OpenSuite(f"{suite.name}-held-out", suite.seeds, measures, suite.retired)


@dataclass(frozen=True)
class Mixture:
    """A recipe's result, opened by whichever process needs it; nothing is written."""

    recipe: Recipe
    openers: Mapping[str, Opener]

    def __call__(self) -> Checkpoint:
        """The fused checkpoint, lazy."""
        return fuse_recipe(self.recipe, {a: self.openers[a]() for a in self.recipe.addresses})


class Judge:
    """Scores of recipes on a suite: the mean over its measures, each a mean over seeds; higher is better.

    Args:
        openers: of the addresses that recipes name.
        suite: what is measured.
        records: where scores are looked for and kept: those of one model are those of `cofuse eval`.
        old: what old heads are fitted on.
        jobs: processes.
        cache: of features.
        progress: told what is done.
    """

    def __init__(
        self,
        openers: Mapping[str, Opener],
        suite: OpenSuite,
        records: Records,
        *,
        old: Model | None = None,
        jobs: int = 1,
        cache: Path | None = None,
        progress: Progress = SILENT,
    ) -> None:
        self.openers = dict(openers)
        self.suite = suite
        self.records = records
        self._options = {"old": old, "jobs": jobs, "cache": cache, "progress": progress}
        self._known: dict[str, float] = {}

    def __call__(self, recipes: Sequence[Recipe]) -> list[float]:
        """A score for each recipe, in their order.

        Raises:
            CofuseError: a measurement failed, or a recipe cannot be fused.
        """
        new = {r.id: r for r in recipes if r.id not in self._known}
        models = [Model.of(name, Mixture(recipe, self.openers)) for name, recipe in new.items()]
        if models:
            found = evaluate(models, self.suite, self.records, **self._options)  # type: ignore[arg-type]
            if found.failures:
                raise found.failures[0].error
            for name in new:
                self._known[name] = self._mean({(r.measure, r.seed): r.value for r in found.records[name]})
        return [self._known[r.id] for r in recipes]

    def _mean(self, values: Mapping[tuple[str, int], float]) -> float:
        means = [float(np.mean([values[m.id, s] for s in self.suite.seeds_of(m)])) for m in self.suite.measures]
        if not means:
            raise SuiteError("nothing to measure", where=self.suite.name)
        return float(np.mean(means))
