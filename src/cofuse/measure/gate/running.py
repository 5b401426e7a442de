"""A gate from two models to a verdict."""

from __future__ import annotations

from pathlib import Path

from ...checkpoint import Checkpoint
from ...progress import SILENT, Progress
from ..compat import predict
from ..evaluation.evaluating import Model, opened
from ..evaluation.records import Records
from ..evaluation.suite import OpenSuite
from .comparison import Comparison
from .gated import Gated
from .policy import Policy
from .sequential import Trial
from .source import Source


def gate(
    old: Model,
    new: Model,
    suite: OpenSuite,
    policy: Policy,
    records: Records,
    *,
    rapid: bool = False,
    fisher: Checkpoint | None = None,
    cache: Path | None = None,
    jobs: int = 1,
    progress: Progress = SILENT,
) -> Gated:
    """May `new` take the place of `old`?

    Args:
        old: the model that people built on.
        new: the candidate.
        suite: what is evaluated, by which protocols.
        policy: what the candidate may cost.
        records: of evaluations; what has one is not measured again.
        rapid: stop as soon as the decision is statistically clear.
        fisher: the diagonal of the old model's Fisher, for the predicted change.
        cache: a folder for features of frozen bodies.
        jobs: processes for what is finetuned.
        progress: told of examples.

    Raises:
        TaskError: a model does not fit a task.
        CheckpointError: the Fisher belongs to another model.
        SuiteError: a model changed meanwhile.
    """
    reshaped = _shapes(opened(old)) != _shapes(opened(new))
    predicted = None
    if fisher is not None and not reshaped:
        predicted = predict(opened(old), opened(new), fisher, progress=progress).total
    source = Source(old, new, suite, records, cache=cache, jobs=jobs, progress=progress)
    items = source.items()
    trial = Trial(items, policy, rapid=rapid, predicted=predicted, reshaped=reshaped)
    bar = progress.bar("gate", sum(item.available for item in items))
    for batch in trial:
        trial.take(*source(batch))
        bar.advance(batch.stop - batch.start)
    comparison = Comparison(old=old.content, new=new.content, reshaped=True) if reshaped else trial.comparison
    return Gated(trial.verdict, comparison, policy, suite, rapid, trial.taken, trial.planned, trial.saved)


def _shapes(model: Checkpoint) -> object:
    """What a head stands on: how long the vectors are that the body gives."""
    config = model.config
    return next((config[k] for k in ("hidden_size", "d_model", "n_embd", "dim", "hidden_sizes") if k in config), None)
