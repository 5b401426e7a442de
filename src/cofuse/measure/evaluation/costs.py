"""What work costs, counted in examples that go through the body once, so that the time left can be told."""

from __future__ import annotations

from ...tasks.finetune import Finetuning
from ...tasks.pretrain import Pretraining
from .protocols import FinetuneProtocol, Protocol

# A training step goes forward once and backward, which takes about twice as long.
_STEP = 3.0
_UNKNOWN = 1000  # examples of a split whose size is not asked for


def training(settings: Finetuning | Pretraining, examples: int | None) -> float:
    """One training run."""
    steps = settings.steps if isinstance(settings, Pretraining) else settings.total_steps(examples or _UNKNOWN)
    return _STEP * steps * settings.batch_size


def measuring(protocol: Protocol) -> float:
    """One measurement of one model on one task."""
    tested, trained = float(protocol.test or _UNKNOWN), protocol.examples or _UNKNOWN
    if isinstance(protocol, FinetuneProtocol):
        return protocol.draws * (training(protocol.finetuning, trained) + tested)
    return protocol.draws * trained + tested
