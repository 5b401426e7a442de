"""Parameters that no rule covers: their gradients by `torch.func`, for a batch at once or one example at a time."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.func import functional_call, grad, vmap

from ..exhausted import exhausted
from .coverage import gradients
from .rule import parts

if TYPE_CHECKING:
    from ...subject import Batch, Subject


class _Whole(nn.Module):
    """A subject as one module, which is what `functional_call` takes."""

    def __init__(self, subject: Subject) -> None:
        super().__init__()
        self.inner = subject.module
        self._forward = subject.forward

    def forward(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return self._forward(inputs)


@contextmanager
def _unconverted(module: nn.Module) -> Iterator[None]:
    """Inside, a layer that converts itself while it runs (a router, to float32) raises: under `vmap`, torch would crash."""

    def refuse(*given: Any, **named: Any) -> None:
        raise RuntimeError("a layer converts itself")

    for inner in module.modules():
        inner.__dict__["_apply"] = refuse
    try:
        yield
    finally:
        for inner in module.modules():
            inner.__dict__.pop("_apply", None)


class Fallback:
    """Squared per-example gradients of some parameters.

    Exactly J' v as everywhere; `vmap` is given up for a loop where the model does not go through it (control that depends
    on data).
    """

    def __init__(self, subject: Subject, budget: int) -> None:
        self._subject, self._budget = subject, budget
        self._whole = _Whole(subject)
        self._parameters: list[tuple[str, nn.Parameter]] = []
        self.vmapped = True

    def take(self, names: Sequence[str]) -> None:
        """Say which parameters, by the checkpoint's names."""
        known = self._subject.parameters()
        self._parameters = [(name, known[name]) for name in names]

    def squares(
        self, batch: Batch, v: torch.Tensor, around: Callable[[], AbstractContextManager[Any]]
    ) -> dict[str, torch.Tensor]:
        """Sums over a batch's examples of (J_n' v_n)^2, by name."""
        if not self._parameters:
            return {}
        with around():
            if self.vmapped:
                try:
                    return self._at_once(batch.to(v.device), v)
                except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
                    if exhausted(error):
                        raise
                    self.vmapped = False
            sums = {name: torch.zeros_like(p) for name, p in self._parameters}
            for i in range(len(batch)):
                found = gradients(self._subject, batch, v, i, self._parameters)
                for (name, _), one in zip(self._parameters, found, strict=True):
                    if one is not None:
                        sums[name] += one.square()
            return sums

    def _at_once(self, batch: Batch, v: torch.Tensor) -> dict[str, torch.Tensor]:
        inside = {id(p): name for name, p in self._whole.named_parameters()}
        names = {inside[id(p)]: name for name, p in self._parameters}
        values = {inside[id(p)]: p.detach() for _, p in self._parameters}

        def score(values: dict[str, torch.Tensor], inputs: dict[str, torch.Tensor], v: torch.Tensor) -> torch.Tensor:
            one = {k: x.unsqueeze(0) for k, x in inputs.items()}
            logits: torch.Tensor = functional_call(self._whole, values, (one,))
            return (logits.squeeze(0) * v).sum()

        each = sum(value.numel() * value.element_size() for value in values.values())
        sums = {name: torch.zeros_like(p) for name, p in self._parameters}
        with warnings.catch_warnings(), _unconverted(self._subject.module):
            warnings.simplefilter("ignore")  # torch says so where it goes over examples one by one
            for rows in parts(len(batch), each, self._budget):
                found = vmap(grad(score), (None, 0, 0))(values, batch.part(rows).inputs, v[rows])
                for inner, g in found.items():
                    sums[names[inner]] += g.square().sum(0)  # not in place: gradients may share memory
        return sums
