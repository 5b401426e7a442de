"""How far two results are apart, tensor by tensor, in the units of the promise.

The promise: in float32 within 1e-6 of the tensor's norm, in bfloat16 within one unit in the last place at
max(|base|, |t_i|) (or at the result, where weights make it larger), but for entries that a law excepts (laws.py). Where mergekit's own arithmetic in the inputs' dtype loses
more than that, the promise is about mergekit computing the same recipe in float64.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import torch

from cofuse.checkpoint import Checkpoint, open_local

from .cases import Case
from .inputs import Inputs
from .laws import LAWS

LIMITS = {"F32": 1e-6, "BF16": 1.0}
# What a recipe says so that mergekit computes in float64 and writes the inputs' dtype.
WIDER = {
    "F32": {"dtype": "float64", "out_dtype": "float32"},
    "BF16": {"dtype": "float64", "out_dtype": "bfloat16"},
}


@dataclass
class Deviation:
    """Of one result from another.

    Attributes:
        worst: the largest of any tensor, without the excepted entries; its unit is that of `LIMITS`.
        tensor: where.
        beyond: entries that are over the limit by themselves and that no law excepts.
        excepted: entries that differ by more than rounding, by the law that excepts them.
        entries: how many were compared.
    """

    worst: float = 0.0
    tensor: str = ""
    beyond: int = 0
    excepted: Counter[str] = field(default_factory=Counter)
    entries: int = 0


def ulp(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The distance of neighbouring numbers of a dtype, at these magnitudes; float64.

    >>> ulp(torch.tensor([1.0, 1.99, 0.5]), torch.bfloat16).tolist()
    [0.0078125, 0.0078125, 0.00390625]
    """
    info = torch.finfo(dtype)
    _, exponent = torch.frexp(values.double().abs().clamp(min=info.tiny))
    return torch.ldexp(torch.full_like(values, info.eps, dtype=torch.float64), exponent - 1)


def deviation(method: str, case: Case, inputs: Inputs, ours: Path, theirs: Path, *, wide: bool = False) -> Deviation:
    """Of our result from mergekit's; `wide`: mergekit computed in float64."""
    mine, peer = open_local(ours), open_local(theirs)
    assert {*mine.names()} == {*peer.names()}
    base = open_local(inputs.base)
    models = [open_local(path) for path in inputs.tuned[: len(case.own)]]
    found = Deviation()
    for name in peer.names():
        _one(found, method, case, inputs, name, (mine, peer, base, models), wide=wide)
    return found


def _one(
    found: Deviation,
    method: str,
    case: Case,
    inputs: Inputs,
    name: str,
    checkpoints: tuple[Checkpoint, Checkpoint, Checkpoint, list[Checkpoint]],
    *,
    wide: bool,
) -> None:
    mine, peer, base, models = checkpoints
    ours, theirs, first = mine.read(name), peer.read(name), base.read(name)
    assert ours.shape == theirs.shape, name
    assert ours.dtype == first.dtype, name
    # Masks of its own in float32 make mergekit write bfloat16 models as float32 (arcee_fusion, ramplus_tl); we keep the
    # base's dtype, to which its result is rounded here.
    theirs = theirs.to(ours.dtype)
    found.entries += ours.numel()
    tuned = [model.read(name) for model in models]
    assert torch.isfinite(theirs).all(), f"mergekit's {name} is not finite"
    largest = torch.stack([first.abs(), theirs.abs(), *(t.abs() for t in tuned)]).amax(0)
    apart = (ours.double() - theirs.double()).abs()
    unit = ulp(largest, ours.dtype)
    # In bfloat16 the promise is about each entry; in float32 about the norm, and an entry is looked at from 4 ulp on.
    beyond = apart > (unit if inputs.dtype == "BF16" else 4 * unit)
    if beyond.any():
        kind = torch.float64 if wide else ours.dtype
        for law, allows in LAWS.get(method, {}).items():
            excepted = beyond & allows(case, first.to(kind), [t.to(kind) for t in tuned])
            if excepted.any():
                found.excepted[law] += int(excepted.sum())
                beyond &= ~excepted
                apart = apart.masked_fill(excepted, 0.0)
    if inputs.dtype == "BF16":
        worst = float((apart / unit).max()) if apart.numel() else 0.0
    else:
        norm = float(theirs.double().norm())
        worst = float(apart.norm()) / norm if norm else float(apart.norm() > 0)
    found.beyond += int(beyond.sum())
    if worst >= found.worst:
        found.worst, found.tensor = worst, name
