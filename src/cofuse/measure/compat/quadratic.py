"""What one change does to a model's output, to second order and in truth: on logits, whatever the model.

    p = softmax(z)      F = E_x J' (diag p - p p') J      so      delta' F delta = E_x Var_p(J delta)

J delta, the derivative of the logits along the change, takes one Jacobian-vector product a batch: no gradient, and no
matrix. Sources: Martens, arXiv 1412.1193; forward-mode differentiation as in Pearlmutter, "Fast exact
multiplication by the Hessian", Neural Computation 6 (1994).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch.func import jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..statistics.exhausted import exhausted

Tensors: TypeAlias = Mapping[str, torch.Tensor]
Form: TypeAlias = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]


def along(
    function: Callable[[Tensors], torch.Tensor], at: Tensors, change: Tensors
) -> tuple[torch.Tensor, torch.Tensor]:
    """A function's value, and its derivative along a change of its arguments: z(theta) and J delta.

    Forward-mode; where an operation has none, twice backward: J delta is the derivative of <J' u, delta> by u.

    Args:
        function: of the tensors named in `at`.
        at: where: theta.
        change: of every tensor of `at`, of the same shape: delta.

    >>> z, dz = along(lambda p: p["w"] ** 2, {"w": torch.tensor(3.0)}, {"w": torch.tensor(0.5)})
    >>> float(z), float(dz)
    (9.0, 3.0)
    """
    # The fused attention kernels have no derivative of this kind; the one written out in matrix products has.
    with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.script", DeprecationWarning)  # torch's own use of it
        try:
            found = jvp(function, (dict(at),), (dict(change),))
        except (NotImplementedError, RuntimeError) as error:
            if exhausted(error):
                raise
            return _twice_backward(function, at, change)
    return found[0].detach(), found[1].detach()


def _twice_backward(
    function: Callable[[Tensors], torch.Tensor], at: Tensors, change: Tensors
) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.enable_grad():
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in at.items()}
        value = function(leaves)
        u = torch.zeros_like(value, requires_grad=True)
        back = torch.autograd.grad(value, list(leaves.values()), u, create_graph=True, materialize_grads=True)
        inner = torch.stack([(g * change[name]).sum() for name, g in zip(leaves, back, strict=True)]).sum()
        (derivative,) = torch.autograd.grad(inner, u, materialize_grads=True)
    return value.detach(), derivative


def half_variance(logits: torch.Tensor, change: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """1/2 Var_p(dz) of each example, summed over its positions: its part of 1/2 delta' F delta, in nats.

    Args:
        logits: z [examples, ..., classes].
        change: dz = J delta, likewise.
        mask: [examples, ...], true where a position counts; all do when None.

    >>> half_variance(torch.zeros(1, 2), torch.tensor([[2.0, 0.0]]))
    tensor([0.5000], dtype=torch.float64)
    """
    p, d = torch.softmax(logits.double(), -1), change.double()
    centred = d - (p * d).sum(-1, keepdim=True)
    return 0.5 * _per_example((p * centred.square()).sum(-1), mask)


def divergence(logits: torch.Tensor, others: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """KL(p || q) of each example in nats, p = softmax(logits) and q = softmax(others), summed over its positions.

    Args:
        logits: [examples, ..., classes].
        others: likewise.
        mask: [examples, ...], true where a position counts; all do when None.

    >>> divergence(torch.zeros(1, 2), torch.tensor([[0.0, 0.0]]))
    tensor([0.], dtype=torch.float64)
    """
    p, q = (torch.log_softmax(z.double(), -1) for z in (logits, others))
    return _per_example((p.exp() * (p - q)).sum(-1), mask)


def half_square(outputs: torch.Tensor, others: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """KL of each example where outputs [examples, values] are means of normal distributions of variance 1.

    >>> half_square(torch.zeros(1, 1), torch.tensor([[2.0]]))
    tensor([2.], dtype=torch.float64)
    """
    return 0.5 * (others.double() - outputs.double()).square().sum(-1)


# What a model's outputs are -> the KL of each example, and its part of the quadratic form.
FORMS: dict[str, tuple[Form, Form]] = {
    "classes": (divergence, half_variance),
    "tokens": (divergence, half_variance),
    "values": (half_square, lambda outputs, change, mask: half_square(torch.zeros_like(change), change, mask)),
}


def _per_example(values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    if mask is not None:
        values = torch.where(mask.bool(), values, 0.0)
    return values.reshape(len(values), -1).sum(1)
