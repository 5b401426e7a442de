"""A model that is ready to be measured: what it predicts on a batch, and where its parameters stand in the checkpoint.

Which head stands on the body decides what is predicted. The task's head is never among the measured parameters; the
checkpoint's own is, because it is part of the checkpoint.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ..checkpoint import Checkpoint, Memory
from ..checkpoint import body as saved_body
from ..errors import TaskError
from ..tasks import Examples, Task, draw
from ..tasks.finetune import TaskModel, Tuned
from ..tasks.model import Head, Pooling, Precision, body_width, load_body, names_in
from ..tasks.probe import fit_head
from .own_head import own_head

# What a model's outputs are: scores of classes [n, classes]; a value each [n, 1], the mean of a normal distribution of
# variance 1; scores of the vocabulary at each position [n, time, vocabulary].
Outputs = Literal["classes", "values", "tokens"]
HeadChoice = Literal["probe", "random", "own"]

# Keeps the examples that a probe is fitted to apart from other draws of the same seed.
_DRAWS = 0xF15


@dataclass(frozen=True, slots=True)
class Batch:
    """Some examples as a model takes them.

    Attributes:
        rows: the examples' numbers [n].
        inputs: arguments of the model by name, each [n, ...].
        labels: of each example [n], or of each position [n, time]: those that the logits stand at.
        mask: which positions count [n, time]; None where there are no positions.
    """

    rows: npt.NDArray[np.int64]
    inputs: dict[str, torch.Tensor]
    labels: torch.Tensor
    mask: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        return Batch(
            self.rows,
            {name: tensor.to(device) for name, tensor in self.inputs.items()},
            self.labels.to(device),
            None if self.mask is None else self.mask.to(device),
        )

    def first(self, count: int) -> Batch:
        """Its first examples, padded as they are here."""
        return self.part(slice(0, count))

    def part(self, rows: slice) -> Batch:
        """Some of its examples, padded as they are here."""
        return Batch(
            self.rows[rows],
            {name: tensor[rows] for name, tensor in self.inputs.items()},
            self.labels[rows],
            None if self.mask is None else self.mask[rows],
        )


@dataclass(frozen=True, slots=True)
class Prepared:
    """Examples that are ready to be put into batches: their lengths, and a batch of any of them."""

    lengths: npt.NDArray[np.int64]
    collate: Callable[[npt.NDArray[np.int64]], Batch]


@dataclass(frozen=True, slots=True)
class Subject:
    """A model in evaluation mode, in float32 and on its device.

    Attributes:
        module: body and head.
        names: the module's names of measured parameters -> the checkpoint's names. Tied names are all here.
        outputs: what `logits` are.
        forward: the module's inputs -> logits.
        prepare: examples -> what batches are cut from.
        checkpoint: what the parameters were read from.
        record: what decides the numbers besides the checkpoint: head, seed, longest sequence, the task's id.
    """

    module: nn.Module
    names: Mapping[str, str]
    outputs: Outputs
    forward: Callable[[dict[str, torch.Tensor]], torch.Tensor]
    prepare: Callable[[Examples], Prepared]
    checkpoint: Checkpoint
    record: Mapping[str, Any] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        """Where its parameters are."""
        return next(self.module.parameters()).device

    def to(self, device: str | torch.device) -> Subject:
        """Itself, its module moved to a device."""
        self.module.to(device)
        return self

    def parameters(self) -> dict[str, nn.Parameter]:
        """The measured parameters by the checkpoint's names; tied names hold one and the same."""
        own = dict(self.module.named_parameters(remove_duplicate=False))
        return {there: own[name] for name, there in self.names.items()}

    def logits(self, batch: Batch) -> torch.Tensor:
        """What the model says of a batch: [n, classes], [n, 1] or [n, time, vocabulary], on its device.

        Position t of a sequence's logits is about position t of `batch.labels`, where `batch.mask` says that it counts.
        """
        return self.forward(batch.to(self.device).inputs)

    def batches(self, examples: Examples, batch_size: int) -> Iterator[Batch]:
        """All examples in batches of like length, the longest first; `Batch.rows` are numbers of `examples`.

        Raises:
            TaskError: there are no examples, or the size is not positive.
        """
        if batch_size < 1 or not len(examples):
            what, got = ("a batch has examples", batch_size) if batch_size < 1 else ("no examples to measure on", 0)
            raise TaskError(what, got=got, expected="at least 1")
        prepared = self.prepare(examples)
        order = np.argsort(-prepared.lengths, kind="stable")
        for start in range(0, len(order), batch_size):
            yield prepared.collate(order[start : start + batch_size])


def open_subject(
    checkpoint: Checkpoint,
    task: Task,
    *,
    head: HeadChoice = "probe",
    seed: int = 0,
    max_length: int = 128,
    pooling: Pooling = "mean",
    probe_on: int | Examples = 1024,
    precision: Precision = "fp32",
) -> Subject:
    """A checkpoint on a task.

    Args:
        checkpoint: the model; with `own`, of a class that has a head, and the head's tensors.
        task: what it is to predict. A language model with its own head predicts the next token of the task's texts; a
            sequence-to-sequence one predicts the label's name.
        head: `probe`: a linear head fitted to the frozen body's features; `random`: a drawn one; `own`: the
            checkpoint's, found by `architectures` of its config.
        seed: of the random head, and of the examples that the probe is fitted to.
        max_length: longest sequence in tokens.
        pooling: what of a body's outputs a task's head sees.
        probe_on: what the probe is fitted to: so many examples of the train split, or these.
        precision: of the features that the probe is fitted to.

    Raises:
        TaskError: the checkpoint does not fit its config, has no head of its own, or does not fit the task.
    """
    if head == "own":
        return own_subject(checkpoint, task, max_length=max_length)
    # A copy: the module that `load_body` gives is only good until the next call, and two subjects are often compared.
    body = copy.deepcopy(load_body(checkpoint)).eval()
    top = Head(body_width(body), task.outputs, 0.0, seed)
    if head == "probe":
        train = draw(task.examples("train"), probe_on, [_DRAWS, seed]) if isinstance(probe_on, int) else probe_on
        fit_head(top, body, task, task.what.encode(train, checkpoint, max_length), pooling, precision)
    model = TaskModel(body, top, task.what, pooling).eval()
    said = {"head": head, "seed": seed, "max_length": max_length, "pooling": pooling}
    if head == "probe":
        said["probe_on"] = probe_on if isinstance(probe_on, int) else len(probe_on)
    return _of_task_model(model, task, checkpoint, max_length, said)


def tuned_subject(tuned: Tuned) -> Subject:
    """A finetuned model with the head that was trained, on its task.

    It is measured as it would be saved: its checkpoint has the base's names and dtypes, and what the class lacks; its
    parameters are read back from there.

    Raises:
        TaskError: an adapter was trained.
    """
    from ..tasks.masked import masked_checkpoint
    from ..tasks.model import body_checkpoint

    if tuned.adapted is not None:
        raise TaskError(
            "a model with an adapter on it is not the one that is saved",
            where=f"{tuned.like.where}, task {tuned.task.name}",
            hint="merge the adapter into the base, and open the result",
        )
    if tuned.chosen is not None:
        saved: Checkpoint = masked_checkpoint(tuned.model.body, tuned.like, tuned.chosen)
    else:
        saved = saved_body(body_checkpoint(tuned.model.body, tuned.like), like=tuned.like)
    model = copy.deepcopy(tuned.model).eval()
    own = dict(model.body.state_dict(keep_vars=True))
    with torch.no_grad():
        for name, there in names_in(model.body, {*saved.names(), *saved.aliases}).items():
            own[name].copy_(saved.read(there))
    settings = tuned.settings
    said = {"head": "trained", "max_length": settings.max_length, "pooling": settings.pooling}
    return _of_task_model(model, tuned.task, saved, settings.max_length, said)


def _of_task_model(
    model: TaskModel, task: Task, checkpoint: Checkpoint, max_length: int, said: Mapping[str, Any]
) -> Subject:
    inside = names_in(model.body, {*checkpoint.names(), *checkpoint.aliases})
    measured = dict(model.named_parameters(remove_duplicate=False))
    kind = task.what

    def prepare(examples: Examples) -> Prepared:
        encoded = kind.encode(examples, checkpoint, max_length)

        def collate(rows: npt.NDArray[np.int64]) -> Batch:
            return Batch(rows, kind.collate([encoded.rows[i] for i in rows]), torch.from_numpy(encoded.labels[rows]))

        return Prepared(encoded.lengths, collate)

    return Subject(
        module=model,
        names={f"body.{name}": there for name, there in inside.items() if f"body.{name}" in measured},
        outputs="values" if kind.continuous else "classes",
        forward=lambda inputs: cast("torch.Tensor", model(**inputs)["logits"]),
        prepare=prepare,
        checkpoint=checkpoint,
        record={"task": task.name, "task_id": task.id, **said},
    )


def own_subject(checkpoint: Checkpoint, task: Task, *, max_length: int = 128) -> Subject:
    """A checkpoint with its own head on a task's rows; see `open_subject`.

    Raises:
        TaskError: there is no such head, or it does not fit the task.
    """
    module, reading = own_head(checkpoint)
    if reading.outputs == "classes" and reading.classes(module) != task.outputs:
        raise TaskError(
            "the checkpoint's head does not fit the task",
            where=f"{checkpoint.where}, task {task.name}",
            got=f"{reading.classes(module)} outputs",
            expected=f"{task.outputs}",
            hint="take another head: probe or random",
        )
    kind = task.what

    def prepare(examples: Examples) -> Prepared:
        encoded = kind.encode(examples, checkpoint, max_length)
        targets = reading.targets(checkpoint, task, max_length)

        def collate(rows: npt.NDArray[np.int64]) -> Batch:
            inputs = kind.collate([encoded.rows[i] for i in rows])
            return Batch(rows, *reading.collate(module, inputs, encoded.labels[rows], targets))

        return Prepared(encoded.lengths, collate)

    homes = names_in(module, {*checkpoint.names(), *checkpoint.aliases})
    measured = dict(module.named_parameters(remove_duplicate=False))
    return Subject(
        module=module,
        names={name: there for name, there in homes.items() if name in measured},
        outputs="values" if task.what.continuous and reading.outputs == "classes" else reading.outputs,
        forward=lambda inputs: reading.logits(module(**inputs)),
        prepare=prepare,
        checkpoint=checkpoint,
        record={"task": task.name, "task_id": task.id, "head": "own", "max_length": max_length},
    )


def module_subject(
    module: nn.Module,
    outputs: Outputs = "classes",
    *,
    checkpoint: Checkpoint | None = None,
    names: Mapping[str, str] | None = None,
    logits: Callable[[Any], torch.Tensor] = lambda out: cast("torch.Tensor", getattr(out, "logits", out)),
) -> Subject:
    """Any torch module; the columns of the examples, arrays [n, ...], are its arguments by name.

    For `tokens`, labels are [n, time], and those below 0 do not count.

    >>> examples = Examples({"input": np.ones((3, 4), np.float32)}, np.array([0, 1, 1]))
    >>> subject = module_subject(nn.Linear(4, 2))
    >>> [tuple(subject.logits(batch).shape) for batch in subject.batches(examples, 2)]
    [(2, 2), (1, 2)]

    Args:
        module: it is put into evaluation mode, and not copied.
        outputs: what it gives.
        checkpoint: what its parameters are of; its own parameters when None.
        names: its parameters' names in the checkpoint; the same when None.
        logits: what it returns -> logits.
    """
    module.eval()
    own = dict(module.named_parameters(remove_duplicate=False))

    def prepare(examples: Examples) -> Prepared:
        def collate(rows: npt.NDArray[np.int64]) -> Batch:
            inputs = {name: torch.from_numpy(np.asarray(column)[rows]) for name, column in examples.inputs.items()}
            labels = torch.from_numpy(examples.labels[rows])
            return (
                Batch(rows, inputs, labels.clamp(min=0), labels >= 0)
                if outputs == "tokens"
                else Batch(rows, inputs, labels)
            )

        return Prepared(np.ones(len(examples), dtype=np.int64), collate)

    return Subject(
        module=module,
        names={name: name for name in own} if names is None else names,
        outputs=outputs,
        forward=lambda inputs: logits(module(**inputs)),
        prepare=prepare,
        checkpoint=Memory({n: p.detach() for n, p in own.items()}, where="module")
        if checkpoint is None
        else checkpoint,
        record={"head": "own"},
    )
