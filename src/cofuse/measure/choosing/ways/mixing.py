"""A mean of models that can be differentiated by its weights, with one tensor of one model in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import nn
from torch.func import functional_call

from ....checkpoint import Checkpoint
from ...subject import Batch, Subject

Read = Callable[[int], torch.Tensor]
_CHUNK = 1 << 20  # elements that are summed in float64 at a time


class _Mix(torch.autograd.Function):
    """out = sum_i alpha_i theta_i, and d loss / d alpha_i = <d loss / d out, theta_i>.

    Autograd would keep every theta_i for the way back. They are read a second time instead: a model's tensors are on
    disk, and do not change.
    """

    @staticmethod
    def forward(ctx: Any, alpha: torch.Tensor, read: Read) -> torch.Tensor:
        ctx.read, ctx.count, ctx.alpha_dtype = read, len(alpha), alpha.dtype
        mixed: torch.Tensor | None = None
        for i, weight in enumerate(alpha.tolist()):
            theta = read(i)
            mixed = theta * weight if mixed is None else mixed.add_(theta, alpha=weight)
            del theta
        assert mixed is not None  # there is a model
        return mixed

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (gradient,) = gradients
        found = [_inner(gradient, ctx.read(i)) for i in range(ctx.count)]
        return torch.tensor(found, dtype=ctx.alpha_dtype), None


def _inner(one: torch.Tensor, other: torch.Tensor) -> float:
    """<one, other> in float64: the models' are nearly alike, and what tells them apart stands in the last digits."""
    a, b = one.reshape(-1), other.reshape(-1)
    stretches = (slice(start, start + _CHUNK) for start in range(0, len(a), _CHUNK))
    return sum(float(torch.dot(a[some].double(), b[some].double())) for some in stretches)


def mixed_tensor(alpha: torch.Tensor, models: Sequence[Checkpoint], name: str) -> torch.Tensor:
    """A tensor of the mean of some models, in float32; can be differentiated by the weights.

        out = sum_i alpha_i theta_i

    Args:
        alpha: weights [models].
        models: lazily opened; each tensor is read once on the way there and once on the way back.
        name: of the tensor.

    >>> from cofuse.checkpoint import Memory
    >>> models = [Memory({"x": torch.tensor([v])}) for v in (1.0, 3.0)]
    >>> alpha = torch.tensor([0.5, 0.5], requires_grad=True)
    >>> out = mixed_tensor(alpha, models, "x")
    >>> out.sum().backward()
    >>> out.tolist(), alpha.grad.tolist()
    ([2.0], [1.0, 3.0])
    """
    return cast("torch.Tensor", _Mix.apply(alpha, lambda i: models[i].read(name).float()))  # type: ignore[no-untyped-call]


class Mixed:
    """A subject whose parameters are a mean of some models; it keeps no parameters of its own but its head's.

    Args:
        subject: body and head; its measured parameters are dropped.
        models: of the subject's tensors.
        group: a tensor's name -> the row of weights that it is mixed by.
    """

    def __init__(self, subject: Subject, models: Sequence[Checkpoint], group: Mapping[str, int]) -> None:
        self._models = models
        self._group = group
        known = subject.checkpoint
        self._homes = {f"module.{inside}": known.resolve(there) for inside, there in subject.names.items()}
        self._called = _Called(subject)
        own = dict(self._called.named_parameters(remove_duplicate=False))
        for parameter in own.values():
            parameter.requires_grad_(False)
        for inside in self._homes:
            own[inside].data = torch.empty(0)  # never read: the call puts the mixed tensor in its place
        self._subject = subject

    def logits(self, alpha: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Logits of a batch under weights [groups, models]."""
        mixed = {there: mixed_tensor(alpha[self._group[there]], self._models, there) for there in self._tensors()}
        parameters = {inside: mixed[there] for inside, there in self._homes.items()}
        return cast("torch.Tensor", functional_call(self._called, parameters, (batch.inputs,)))

    def _tensors(self) -> list[str]:
        return list(dict.fromkeys(self._homes.values()))


class _Called(nn.Module):
    """A subject's module, called as the subject calls it."""

    def __init__(self, subject: Subject) -> None:
        super().__init__()
        self.module = subject.module
        self._run = subject.forward

    def forward(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return self._run(inputs)
