"""Cheap checks of one contribution: nothing is averaged unseen."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median

import numpy as np
from blake3 import blake3

from ..checkpoint import Body, Checkpoint, body, chunks, content_id, content_id_of, open_local, tensor_id, tensor_id_of
from ..checkpoint.disk import PICKLE_ENDINGS
from ..checkpoint.floats import FLOATS, as_floats
from ..errors import CheckpointError, CofuseError
from ..measure.compat import distances, predict
from .records import Accepted, Refused

_BLOCK = 1 << 16  # elements of each model whose inner products are taken at a time: as many as fit a processor's cache

# Parts of a base that a task's class may lack without anything having gone wrong.
_OPTIONAL = re.compile(r"(^|\.)(pooler|lm_head|cls|predictions|mask_token)(\.|$)")


@dataclass(frozen=True, slots=True)
class Offer:
    """A contribution as it was handed in."""

    who: str
    folder: Path


@dataclass(frozen=True, slots=True)
class Examined:
    """An offer that is good by itself."""

    offer: Offer
    body: Checkpoint
    ids: Mapping[str, str]  # of its tensors


@dataclass(frozen=True, slots=True)
class Screened:
    """What the screen made of a round's offers."""

    bodies: tuple[Checkpoint, ...]
    accepted: tuple[Accepted, ...]
    refused: tuple[Refused, ...]


@dataclass(frozen=True)
class Peers:
    """How far a contribution may be from the others of its round.

    Attributes:
        fisher: statistics of the study's first base.
        threshold: robust standard deviations of the logarithm of the predicted change; see `compat.distances`.
    """

    fisher: Checkpoint
    threshold: float

    @cached_property
    def content(self) -> str:
        """The content id of the statistics."""
        return content_id(self.fisher)


def screen(offers: Sequence[Offer], base: Checkpoint, peers: Peers | None = None) -> Screened:
    """Check offers against the base they should have been tuned from.

    Refused are: files that are damaged, pickled or no checkpoint; a missing tensor; another shape or dtype; a value
    that is not finite; the same weights a second time; with `peers`, a change that is predicted to do far more or far
    less than the others'. The rest is measured: the norm of the change relative to the base, and its cosine with the
    mean change of the others.

    Memory: a chunk of 4 MiB of the base, and a block of half a MiB for each offer.
    """
    return compare([examine(offer, base) for offer in offers], base, peers)


def examine(offer: Offer, base: Checkpoint) -> Examined | Refused:
    """The part of the screen that needs no other offer, and so can be done when the offer comes in."""
    try:
        return Examined(offer, *open_contribution(offer.folder, base))
    except CofuseError as error:
        return _refused(offer, error)


def compare(found: Sequence[Examined | Refused], base: Checkpoint, peers: Peers | None = None) -> Screened:
    """The other part: each offer beside the others, in their order."""
    good: dict[str, Examined] = {}  # by content id
    refused: list[Refused] = []
    for one in found:
        if isinstance(one, Refused):
            refused.append(one)
            continue
        content = content_id_of(one.ids)
        if content in good:
            error = CheckpointError("the same weights were offered twice", where=one.offer.folder)
            refused.append(_refused(one.offer, error))
            continue
        good[content] = one
    predicted: dict[str, float] = {}
    if peers is not None:
        predicted, strange = _in_line(good, base, peers)
        refused += [_refused(good.pop(content).offer, error) for content, error in strange.items()]
    norms, cosines = _geometry(list(good.values()), base)
    accepted = [
        Accepted(
            who=one.offer.who,
            content=content,
            norm=round(norm, 6),
            cosine=round(cosine, 4),
            predicted=predicted.get(content),
        )
        for (content, one), norm, cosine in zip(good.items(), norms, cosines, strict=True)
    ]
    return Screened(tuple(one.body for one in good.values()), tuple(accepted), tuple(refused))


def _in_line(
    good: Mapping[str, Examined], base: Checkpoint, peers: Peers
) -> tuple[dict[str, float], dict[str, CofuseError]]:
    """What each change is predicted to do, and the errors of those that are out of line; by content id."""
    found = {content: predict(base, one.body, peers.fisher, anywhere=True).total for content, one in good.items()}
    usual = f"about {median(found.values()):.3g} as the others" if found else ""
    return found, {
        content: CheckpointError(
            "the predicted change is out of line with the round's others",
            where=good[content].offer.folder,
            got=f"{found[content]:.3g} nats an example, {far:.1f} deviations away",
            expected=f"{usual}, at most {peers.threshold:g} deviations",
        )
        for content, far in zip(found, distances(list(found.values())), strict=True)
        if far > peers.threshold
    }


def _refused(offer: Offer, error: CofuseError) -> Refused:
    # Where a run's folder lies is nobody's business and would make its records differ from another's.
    return Refused(who=offer.who, reason=error.line.replace(str(offer.folder), offer.folder.name))


def open_contribution(folder: Path, base: Checkpoint) -> tuple[Checkpoint, dict[str, str]]:
    """The body of a contribution, its format, names, shapes and values checked; and the ids of its tensors.

    Raises:
        CheckpointError: it is refused; says why.
    """
    if _is_pickled(folder):  # not even loaded
        raise CheckpointError("pickled contributions are refused", where=folder, expected="safetensors")
    mine = body(open_local(folder), like=base)
    check_whole(mine, base, folder)
    return mine, finite_ids(mine)


def check_whole(mine: Body, base: Checkpoint, where: object = None) -> None:
    """Refuse a body that lacks a tensor of its base, but for those that a task's class may lack.

    Raises:
        CheckpointError: names the first.
    """
    missing = [n for n in mine.choices.kept if base.spec(n).dtype in FLOATS and not _OPTIONAL.search(n)]
    if missing:
        raise CheckpointError(
            "a tensor is missing",
            where=mine.where if where is None else where,
            got=f"no {missing[0]}",
            expected=f"{len(base.names())} tensors of the base",
        )


def _is_pickled(path: Path) -> bool:
    if not path.is_dir():
        return path.suffix in PICKLE_ENDINGS
    return not any(path.glob("*.safetensors")) and any(p.suffix in PICKLE_ENDINGS for p in path.iterdir())


def finite_ids(checkpoint: Checkpoint) -> dict[str, str]:
    """The ids of a checkpoint's tensors, none of which holds a NaN or an infinity; every byte is read once.

    Raises:
        CheckpointError: names the first tensor that does, and the place.
    """
    ids = {}
    for name in checkpoint.names():
        spec = checkpoint.spec(name)
        if spec.dtype not in FLOATS:
            ids[name] = tensor_id(checkpoint, name)
            continue
        width = spec.nbytes // max(1, spec.numel)
        digests = []
        for start, stop in chunks(spec.nbytes):
            raw = checkpoint.read_bytes(name, start, stop)
            at, value = _first_not_finite(raw, spec.dtype)
            if at is not None:
                raise CheckpointError(
                    "a value is not finite",
                    where=f"{checkpoint.where}: {name}",
                    got=f"{value} at element {start // width + at}",
                )
            digests.append(blake3(raw).digest())
        ids[name] = tensor_id_of(spec, digests)
    return ids


def _first_not_finite(raw: bytes | bytearray | memoryview, dtype: str) -> tuple[int | None, float]:
    wide = np.float64 if dtype == "F64" else np.float32
    values = as_floats(np.frombuffer(raw, np.uint8), dtype, wide)  # without torch, which takes longer to load than this
    # A sum is finite only where every term is, and is had several times sooner; one that is not may have overflowed.
    with np.errstate(over="ignore", invalid="ignore"):
        if math.isfinite(float(values.sum())):
            return None, 0.0
    wrong = np.flatnonzero(~np.isfinite(values))
    return (int(wrong[0]), float(values[wrong[0]])) if len(wrong) else (None, 0.0)


def _geometry(found: Sequence[Examined], base: Checkpoint) -> tuple[list[float], list[float]]:
    """Relative norm of each change, and its cosine with the mean of the other changes; one pass, block by block.

    With G the Gram matrix of the changes, |sum of the others|^2 = sum of G without row and column i, and the dot
    product with change i is the sum of row i without the diagonal, so only inner products are kept.
    """
    import torch

    count = len(found)
    gram, norm = torch.zeros(count, count, dtype=torch.float64), 0.0
    # In float64: the square of a large float32 that is finite would not be. In buffers that are used again and again:
    # new ones of this size would each be asked of the system.
    there, changes = torch.empty(_BLOCK, dtype=torch.float64), torch.empty(count, _BLOCK, dtype=torch.float64)
    known: Mapping[str, str] = getattr(base, "tensor_ids", dict)()
    for name in base.names():
        spec = base.spec(name)
        if spec.dtype not in FLOATS:
            continue
        width = spec.nbytes // max(1, spec.numel)
        moved = [i for i, one in enumerate(found) if one.ids[name] != known.get(name)]  # not the frozen ones
        rows = torch.tensor(moved, dtype=torch.long)
        # A store verifies whole chunks: whoever reads them piece by piece has each decoded several times.
        for start, stop in chunks(spec.nbytes):
            first, chunk = start // width, base.read_flat(name, start // width, stop // width)
            for at in range(0, len(chunk), _BLOCK):
                length = min(_BLOCK, len(chunk) - at)
                before = there[:length].copy_(chunk[at : at + length])
                norm += float(before @ before)
                if not moved:
                    continue
                for row, i in enumerate(moved):
                    mine = found[i].body.read_flat(name, first + at, first + at + length)
                    changes[row, :length].copy_(mine).sub_(before)
                part = changes[: len(moved), :length]  # [offer, element]
                gram[rows[:, None], rows] += part @ part.T
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
