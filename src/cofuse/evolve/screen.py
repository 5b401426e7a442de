"""Cheap checks of one contribution: nothing is averaged unseen."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..checkpoint import Checkpoint, body, content_id, open_local
from ..checkpoint.disk import PICKLE_ENDINGS
from ..errors import CheckpointError, CofuseError
from ..fuse.plan import FLOATS
from .records import Accepted, Refused

# Parts of a base that a task's class may lack without anything having gone wrong.
_OPTIONAL = re.compile(r"(^|\.)(pooler|lm_head|cls|predictions|mask_token)(\.|$)")


@dataclass(frozen=True, slots=True)
class Offer:
    """A contribution as it was handed in."""

    who: str
    folder: Path


@dataclass(frozen=True, slots=True)
class Screened:
    """What the screen made of a round's offers."""

    bodies: tuple[Checkpoint, ...]
    accepted: tuple[Accepted, ...]
    refused: tuple[Refused, ...]


def screen(offers: Sequence[Offer], base: Checkpoint) -> Screened:
    """Check offers against the base they should have been tuned from.

    Refused are: files that are damaged, pickled or no checkpoint; a missing tensor; another shape or dtype; a value
    that is not finite; the same weights a second time. The rest is measured: the norm of the change relative to the
    base, and its cosine with the mean change of the others.

    Memory: one block of about 1 MiB for each offer.
    """
    bodies: list[Checkpoint] = []
    names: list[str] = []
    contents: list[str] = []
    refused: list[Refused] = []
    for offer in offers:
        try:
            mine = open_contribution(offer.folder, base)
            content = content_id(mine)
            if content in contents:
                raise CheckpointError("the same weights were offered twice", where=offer.folder)
        except CofuseError as error:
            # Where a run's folder lies is nobody's business and would make its records differ from another's.
            refused.append(Refused(who=offer.who, reason=error.line.replace(str(offer.folder), offer.folder.name)))
            continue
        bodies.append(mine)
        names.append(offer.who)
        contents.append(content)
    norms, cosines = _geometry(bodies, base)
    accepted = [
        Accepted(who=who, content=content, norm=round(norm, 6), cosine=round(cosine, 4))
        for who, content, norm, cosine in zip(names, contents, norms, cosines, strict=True)
    ]
    return Screened(tuple(bodies), tuple(accepted), tuple(refused))


def open_contribution(folder: Path, base: Checkpoint) -> Checkpoint:
    """The body of a contribution, its format, names, shapes and values checked.

    Raises:
        CheckpointError: it is refused; says why.
    """
    if _is_pickled(folder):  # not even loaded
        raise CheckpointError("pickled contributions are refused", where=folder, expected="safetensors")
    mine = body(open_local(folder), like=base)
    missing = [n for n in mine.choices.kept if base.spec(n).dtype in FLOATS and not _OPTIONAL.search(n)]
    if missing:
        raise CheckpointError(
            "a tensor is missing",
            where=folder,
            got=f"no {missing[0]}",
            expected=f"{len(base.names())} tensors of the base",
        )
    check_finite(mine)
    return mine


def _is_pickled(path: Path) -> bool:
    if not path.is_dir():
        return path.suffix in PICKLE_ENDINGS
    return not any(path.glob("*.safetensors")) and any(p.suffix in PICKLE_ENDINGS for p in path.iterdir())


def check_finite(checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint that holds a NaN or an infinity, block by block.

    Raises:
        CheckpointError: names the tensor and the first place.
    """
    import torch

    for name in checkpoint.names():
        spec = checkpoint.spec(name)
        if spec.dtype not in FLOATS:
            continue
        width = spec.nbytes // max(1, spec.numel)
        for start, stop in checkpoint.blocks(name):
            block = checkpoint.read_flat(name, start // width, stop // width)
            finite = torch.isfinite(block)
            if not bool(finite.all()):
                at = start // width + int((~finite).nonzero()[0])
                raise CheckpointError(
                    "a value is not finite",
                    where=f"{checkpoint.where}: {name}",
                    got=f"{float(block[at - start // width])} at element {at}",
                )


def _geometry(bodies: Sequence[Checkpoint], base: Checkpoint) -> tuple[list[float], list[float]]:
    """Relative norm of each change, and its cosine with the mean of the other changes; one pass, block by block.

    With G the Gram matrix of the changes, |sum of the others|^2 = sum of G without row and column i, and the dot
    product with change i is the sum of row i without the diagonal, so only inner products are kept.
    """
    import torch

    count = len(bodies)
    gram = torch.zeros(count, count, dtype=torch.float64)
    norm = 0.0
    for name in base.names():
        spec = base.spec(name)
        if spec.dtype not in FLOATS:
            continue
        width = spec.nbytes // max(1, spec.numel)
        for start, stop in base.blocks(name, 1 << 19):
            span = (start // width, stop // width)
            # In float64: the square of a large float32 that is finite would not be.
            there = base.read_flat(name, *span).double()
            norm += float(there.square().sum())
            if bodies:
                changes = torch.stack([b.read_flat(name, *span).double() - there for b in bodies])  # [offer, element]
                gram += changes @ changes.T
    norms = [math.sqrt(max(0.0, float(gram[i, i]))) / math.sqrt(norm) if norm else 0.0 for i in range(count)]
    cosines = []
    for i in range(count):
        others = [j for j in range(count) if j != i]
        dot = float(gram[i, others].sum()) if others else 0.0
        size = (
            math.sqrt(max(0.0, float(gram[others][:, others].sum())) * max(0.0, float(gram[i, i]))) if others else 0.0
        )
        cosines.append(dot / size if size else 0.0)
    return norms, cosines
