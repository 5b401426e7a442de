"""How much a change alters a model's output on data: measured, and by the full quadratic form, in one pass."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...checkpoint import Checkpoint
from ...errors import TaskError
from ...progress import SILENT, Progress
from ...tasks import Examples
from ..subject import Batch, Subject
from .quadratic import FORMS, Tensors, along

Values = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """What a change did on examples, in their order.

    Attributes:
        kls: KL(p_base || p_changed) of each example, in nats.
        quadratics: its part of 1/2 delta' F delta; None where it was not asked for.
        agreements: the share of its positions whose most likely class stayed; None where outputs are values.
        flips: examples that were right and are wrong now, and the converse; None where outputs are no classes.
    """

    kls: Values
    quadratics: Values | None = None
    agreements: Values | None = None
    flips: tuple[int, int] | None = None

    @property
    def kl(self) -> float:
        """The mean over examples."""
        return float(self.kls.mean())

    @property
    def quadratic(self) -> float | None:
        """The full form of the whole change: the mean over examples."""
        return None if self.quadratics is None else float(self.quadratics.mean())

    @property
    def agreement(self) -> float | None:
        """The share of examples (of their positions) that are answered as before."""
        return None if self.agreements is None else float(self.agreements.mean())


def measure_change(
    subject: Subject,
    changed: Checkpoint,
    examples: Examples,
    *,
    quadratic: bool = False,
    batch_size: int = 32,
    progress: Progress = SILENT,
) -> Measured:
    """Compare a model's outputs with those of the model after a change, whose head stays.

    Args:
        subject: the base, with its head.
        changed: the base with a change; tensors that are no parameters of the subject (running means) count as
            unchanged.
        examples: what they are compared on.
        quadratic: also the full quadratic form: one Jacobian-vector product a batch.
        batch_size: examples at a time; the result depends on it by rounding alone.
        progress: told of every example.

    Returns:
        KLs of distributions over classes, of normal distributions of variance 1 for values, and for sequences the sum
        over the positions that count.

    Raises:
        TaskError: a parameter is missing or of another shape.

    Memory: a second model in float32, and a third with `quadratic`; a batch.
    """
    before, after = _parameters(subject), _changed(subject, changed)
    delta = {name: after[name] - tensor for name, tensor in before.items()} if quadratic else None
    run = _Forward(subject)
    kl, form = FORMS[subject.outputs]
    found = {what: np.zeros(len(examples)) for what in ("kl", "quadratic", "same", "lost", "won")}
    bar = progress.bar("comparing outputs", len(examples))
    for given in subject.batches(examples, batch_size):
        batch = given.to(subject.device)
        function = partial(run.at, batch)
        # The same kernels for all of them: rounding that differs would drown a small KL.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            new = function(after)
            old = function(before) if delta is None else new
        if delta is not None:
            old, derivative = along(function, before, delta)
            found["quadratic"][batch.rows] = form(old, derivative, batch.mask).cpu().numpy()
        found["kl"][batch.rows] = kl(old, new, batch.mask).cpu().numpy()
        for what, values in _answers(old, new, batch).items():
            found[what][batch.rows] = values
        bar.advance(len(batch))
    return Measured(
        kls=found["kl"],
        quadratics=None if delta is None else found["quadratic"],
        agreements=None if subject.outputs == "values" else found["same"],
        flips=(int(found["lost"].sum()), int(found["won"].sum())) if subject.outputs == "classes" else None,
    )


class _Forward(nn.Module):
    """A subject's forward pass, with other tensors in place of its parameters."""

    def __init__(self, subject: Subject) -> None:
        super().__init__()
        self.module = subject.module
        self._forward = subject.forward

    def forward(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return self._forward(inputs)

    def at(self, batch: Batch, tensors: Tensors) -> torch.Tensor:
        """The logits of a batch."""
        named = {f"module.{name}": tensor for name, tensor in tensors.items()}
        logits: torch.Tensor = functional_call(self, named, (batch.inputs,))
        return logits


def _parameters(subject: Subject) -> dict[str, torch.Tensor]:
    """The measured parameters by the module's names, tied ones once."""
    return {name: p.detach() for name, p in subject.module.named_parameters() if name in subject.names}


def _changed(subject: Subject, changed: Checkpoint) -> dict[str, torch.Tensor]:
    """The changed model's values of the same parameters."""
    found = {}
    for name, parameter in _parameters(subject).items():
        there = subject.names[name]
        if there not in changed or changed.spec(there).shape != tuple(parameter.shape):
            raise TaskError(
                "the changed model does not fit the base",
                where=f"{changed.where}: {there}",
                got=list(changed.spec(there).shape) if there in changed else "no such tensor",
                expected=list(parameter.shape),
            )
        found[name] = changed.read(there).to(parameter.device, parameter.dtype)
    return found


def _answers(old: torch.Tensor, new: torch.Tensor, batch: Batch) -> dict[str, Any]:
    """Of each example: whether (or how often) its answer stayed; whether it became wrong; whether it became right."""
    if old.shape[-1] == 1:
        return {}
    before, after = old.argmax(-1), new.argmax(-1)
    same = (before == after).double()
    if batch.mask is not None:
        counts = batch.mask.double()
        return {"same": ((same * counts).sum(1) / counts.sum(1).clamp_min(1)).cpu().numpy()}
    was, now = before == batch.labels, after == batch.labels
    return {"same": same.cpu().numpy(), "lost": (was & ~now).cpu().numpy(), "won": (~was & now).cpu().numpy()}
