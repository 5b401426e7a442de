"""Whether rules give what gradients of one example at a time give."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from ...subject import Batch, Subject

# Of the norm of a parameter's squares; and, where they are nothing but rounding, of the largest of all parameters.
_RELATIVE, _ROUNDING = 1e-3, 1e-10


def one_at_a_time(
    subject: Subject, batch: Batch, parameters: Sequence[tuple[str, nn.Parameter]]
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The obviously right way, for drawn vectors v at the logits.

    Returns:
        Sums of squares by name, float64; and the vectors.
    """
    with torch.no_grad():
        logits = subject.logits(batch)
    v = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0)).to(logits)
    if batch.mask is not None:
        v *= batch.mask.unsqueeze(-1).to(v)
    sums = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in parameters}
    for i in range(len(batch)):
        for (name, _), found in zip(parameters, gradients(subject, batch, v, i, parameters), strict=True):
            if found is not None:
                sums[name] += found.double().square_()
    return sums, v


def gradients(
    subject: Subject, batch: Batch, v: torch.Tensor, i: int, parameters: Sequence[tuple[str, nn.Parameter]]
) -> Sequence[torch.Tensor | None]:
    """One example's J' v for each parameter; None where it does not depend on it."""
    wanted = [parameter for _, parameter in parameters]
    before = [parameter.requires_grad for parameter in wanted]
    for parameter in wanted:
        parameter.requires_grad_(True)
    try:
        logits = subject.logits(batch.part(slice(i, i + 1)))
        if not logits.requires_grad:  # it depends on none of them
            return [None] * len(wanted)
        return torch.autograd.grad(logits, wanted, v[i : i + 1].to(logits), allow_unused=True)
    finally:
        for parameter, was in zip(wanted, before, strict=True):
            parameter.requires_grad_(was)


def unlike(found: Mapping[str, torch.Tensor], truth: Mapping[str, torch.Tensor]) -> Iterator[str]:
    """Names whose sums of squares differ by more than rounding does."""
    largest = max((float(t.mean()) for t in truth.values() if t.numel()), default=0.0)
    for name, right in truth.items():
        allowed = _RELATIVE * float(right.norm()) + _ROUNDING * largest * right.numel() ** 0.5
        if not float((right - found[name]).norm()) <= allowed:  # in float64, one parameter at a time
            yield name
