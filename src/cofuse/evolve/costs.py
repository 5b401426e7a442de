"""What a study costs, counted in examples that go through the body once, so that the time left can be told."""

from __future__ import annotations

from ..measure.evaluation.costs import measuring, training
from ..tasks.pretrain import Pretraining
from .study import Study

__all__ = ["measuring", "training", "whole"]


def whole(study: Study) -> float:
    """All of a study."""
    seen, unseen = len(study.seen), len(study.unseen)

    def measured(number: int | None) -> float:
        return sum(
            tasks * measuring(protocol)
            for tasks, evaluation in ((unseen, study.evaluate_unseen), (seen, study.evaluate_seen))
            for protocol in evaluation.chosen().values()
            if number is None or protocol.due(number, study.rounds)
        )

    total = measured(None)  # the pretrained base
    for number in range(1, study.rounds + 1):
        total += training(study.finetune, study.examples) * (study.per_round or study.people) + measured(number)
    baselines = study.baselines
    if baselines.wants_alone:
        total += training(study.alone, study.examples) * seen
        chosen = study.evaluate_unseen.chosen()
        total += seen * unseen * sum(measuring(p) for name, p in chosen.items() if name in baselines.intertrain)
        total += measured(None) if baselines.fuse_once else 0.0
    if study.together is not None:
        total += training(study.together, study.examples) + measured(None)
    total *= len(study.seeds)
    return total + (training(study.base, None) if isinstance(study.base, Pretraining) else 0.0)
