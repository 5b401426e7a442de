"""The straight line between two models: loss and score along it, and the barrier that stands on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from ..checkpoint import Checkpoint
from ..errors import TaskError
from ..fuse import fuse
from ..progress import SILENT, Progress
from ..tasks import Task
from ..tasks.heads import open_tuned
from ..tasks.task import Split
from .loss import TOKENS, loss_and_score
from .own_head import own_head
from .subject import Subject, open_subject, tuned_subject

# What stands on the bodies along the line: the checkpoints' own head or the kept ones, which are mixed as the bodies are,
# or a probe that is fitted anew at each point.
CurveHead = Literal["auto", "own", "kept", "probe"]


@dataclass(frozen=True, slots=True)
class Point:
    """A place on the line: the second model's share, the mean loss in nats, the score in percent."""

    share: float
    loss: float
    score: float


@dataclass(frozen=True, slots=True)
class Curve:
    """A line between two models; the first point is the one, the last the other.

    >>> curve = Curve("t", "test", "accuracy", "own", 9, (Point(0, 1, 90), Point(0.5, 3, 60), Point(1, 2, 80)))
    >>> curve.barrier, curve.above_mean, curve.score_barrier
    (1.5, 1.5, 25.0)
    """

    task: str
    split: str
    metric: str
    head: str
    examples: int
    points: tuple[Point, ...]

    @property
    def barrier(self) -> float:
        """max_l L(l) - ((1 - l) L(A) + l L(B)), in nats; never negative, since it is 0 at the ends."""
        return max(p.loss - self.chord(p.share) for p in self.points)

    @property
    def above_mean(self) -> float:
        """max_l L(l) - (L(A) + L(B)) / 2, the form of Git Re-Basin; larger than the barrier where the ends differ."""
        return max(p.loss for p in self.points) - self.chord(0.5)

    @property
    def score_barrier(self) -> float:
        """How far the score falls below the straight line between the ends, in points."""
        first, last = self.points[0].score, self.points[-1].score
        return max((1 - p.share) * first + p.share * last - p.score for p in self.points)

    def chord(self, share: float) -> float:
        """The loss on the straight line between the ends' losses."""
        return (1 - share) * self.points[0].loss + share * self.points[-1].loss

    def document(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        said = {k: v for k, v in asdict(self).items() if k != "points"}
        found = {"barrier": self.barrier, "above_mean": self.above_mean, "score_barrier": self.score_barrier}
        return {"what": "curve", **said, **found, "points": [asdict(p) for p in self.points]}


def curve(
    one: Checkpoint,
    other: Checkpoint,
    task: Task,
    *,
    points: int = 11,
    split: Split = "test",
    examples: int | None = None,
    head: CurveHead = "auto",
    heads: Sequence[Path] | None = None,
    max_length: int = 128,
    progress: Progress = SILENT,
) -> Curve:
    """Loss and score along theta_l = (1 - l) A + l B, l from 0 to 1 in equal steps.

    The ends are the models themselves, not mixtures. What stands on the bodies (`head`):

    - `own`: the models have a head of the task in their checkpoints; it is mixed as all else;
    - `kept`: their heads are in files beside them (`cofuse finetune` writes such); head_l = (1 - l) head_A + l head_B;
    - `probe`: a linear head is fitted to each point's body on the same training examples: what the body is good for,
      whatever heads there were;
    - `auto`: the first of these that both models have.

    Args:
        one: A; gives names, dtypes and files.
        other: B.
        task: gives the data and the metric.
        points: at least 2.
        split: `train`, as barriers of training are told, `validation` or `test`.
        examples: the first so many of the split; all when None.
        head: see above.
        heads: files or folders of the kept heads of both.
        max_length: longest sequence in tokens; a kept head says its own.
        progress: told of every point.

    Raises:
        TaskError: fewer points than 2, or the models have no such head.
        FuseError: the models do not fit together.

    Source: Frankle et al., "Linear mode connectivity", arXiv 1912.05671 (the barrier); Ainsworth et al., "Git
    Re-Basin", arXiv 2209.04836 (`above_mean`).
    """
    if points < 2:
        raise TaskError("a line has two ends", got=points, expected="at least 2 points")
    standing = _standing((one, other), task, head, heads)
    rows = task.examples(split).first(examples)
    bar = progress.bar(f"{task.name}, {split}", points)
    found: list[Point] = []
    metric = task.score_name
    for i in range(points):
        share = i / (points - 1)
        mixed = _mixed(one, other, share)
        if standing == "kept" and heads is not None:
            subject = _with_mixed_head(mixed, task, heads, share)
        else:
            subject = open_subject(mixed, task, head="own" if standing == "own" else "probe", max_length=max_length)
        metric = TOKENS if subject.outputs == "tokens" else metric
        found.append(Point(share, *loss_and_score(subject, task, rows)))
        bar.advance(1)
    return Curve(task.name, split, metric, standing, len(rows), tuple(found))


def _mixed(one: Checkpoint, other: Checkpoint, share: float) -> Checkpoint:
    """A place on the line, lazy; the ends as they are, whatever their dtype."""
    if share in (0.0, 1.0):
        return other if share else one
    return fuse("linear", [one, other], weights=[1 - share, share])


def _standing(models: Sequence[Checkpoint], task: Task, head: CurveHead, heads: Sequence[Path] | None) -> str:
    if head == "kept" and heads is None:
        raise TaskError("both models need a head in a file", expected="head.safetensors beside the weights of each")
    if head != "auto":
        return head
    if heads is not None:
        return "kept"
    return "own" if all(_fits(model, task) for model in models) else "probe"


def _fits(model: Checkpoint, task: Task) -> bool:
    """Whether a checkpoint has a head of its own that predicts the task's labels."""
    try:
        module, reading = own_head(model)
    except TaskError:
        return False
    return reading.outputs == "tokens" or reading.classes(module) == task.outputs


def _with_mixed_head(body: Checkpoint, task: Task, heads: Sequence[Path], share: float) -> Subject:
    """A body with a mean of two kept heads on it."""
    other = open_tuned(body, heads[1], task).model.head.linear.state_dict()
    other = {name: tensor.clone() for name, tensor in other.items()}
    tuned = open_tuned(body, heads[0], task)
    with torch.no_grad():
        for name, parameter in tuned.model.head.linear.named_parameters():
            parameter.lerp_(other[name], share)
    return tuned_subject(tuned)
