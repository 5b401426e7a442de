"""A policy: what a candidate may cost those who built on the old model. YAML, see docs/formats/policy.md."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from ...document import Document, read_document


class TaskPolicy(Document):
    """What differs for one task; what is not given is the policy's own."""

    max_drop: float | None = Field(None, gt=0, le=100)
    max_negative_flips: float | None = Field(None, gt=0, le=100)
    max_kl: float | None = Field(None, gt=0)
    ignore: bool = False  # reported, never decisive


class Policy(Document):
    """When a candidate passes, when it is blocked; all that is left is undecided.

    >>> Policy().margin("sst2"), Policy(tasks={"cola": {"max_drop": 3}}).margin("cola")
    (1.0, 3.0)
    """

    name: str = "default"
    confidence: float = Field(0.95, gt=0.5, lt=1)
    power: float = Field(0.98, gt=0.5, lt=1)
    max_drop: float = Field(1.0, gt=0, le=100)
    max_mean_drop: float = Field(1.0, gt=0, le=100)
    max_worst_drop: float | None = Field(None, gt=0, le=100)
    max_negative_flips: float | None = Field(None, gt=0, le=100)
    max_kl: float | None = Field(None, gt=0)
    max_predicted: float | None = Field(None, gt=0)
    allow_if_mean_rises: bool = False
    patch_flips: float = Field(1.0, ge=0, le=100)
    tasks: Mapping[str, TaskPolicy] = {}

    @property
    def tail(self) -> float:
        """Error of each side: half of what the confidence leaves."""
        return (1 - self.confidence) / 2

    def margin(self, task: str) -> float:
        """Points that a task may lose."""
        own = self.tasks.get(task)
        return self.max_drop if own is None or own.max_drop is None else own.max_drop

    def flips(self, task: str) -> float | None:
        """Negative flips that a task may have, in percent of its examples."""
        own = self.tasks.get(task)
        return self.max_negative_flips if own is None or own.max_negative_flips is None else own.max_negative_flips

    def kl(self, task: str) -> float | None:
        """Divergence that a task may have, in nats an example."""
        own = self.tasks.get(task)
        return self.max_kl if own is None or own.max_kl is None else own.max_kl

    def counts(self, task: str) -> bool:
        """Whether a task decides anything."""
        return task not in self.tasks or not self.tasks[task].ignore


def read_policy(path: Path, changes: Mapping[str, Any] | None = None) -> Policy:
    """Read a policy from a YAML file.

    Args:
        path: the file.
        changes: values to set, by dotted key.

    Raises:
        DocumentError: it cannot be read or does not fit.
    """
    return read_document(path, Policy, changes)
