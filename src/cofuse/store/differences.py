"""How two checkpoints differ: which tensors, and by how much. Tensors whose ids are equal are never read."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..checkpoint import Checkpoint, Hashed, TensorSpec, file_id
from ..progress import SILENT, Progress
from .measuring import Sums, measured
from .parts import SideFiles


@dataclass(frozen=True, slots=True)
class Difference:
    """How one tensor differs.

    Attributes:
        name: the tensor's.
        status: `changed`, `added`, `removed`, `reshaped` or `retyped` (another dtype; the numbers are there too).
        before, after: dtype and shape; None where it is not there.
        relative: ||b - a|| / ||a||, Euclidean; infinite where a is zero; None where there are no numbers to subtract.
        fraction: of the elements, how many differ.
        largest: the largest absolute difference of an element.
        cosine: of the angle between b - a and c - a, for a third checkpoint c; None without one, or where one of them is zero.
        strange: how many elements are not finite on either side; they count in `fraction` alone.
    """

    name: str
    status: str
    before: TensorSpec | None
    after: TensorSpec | None
    relative: float | None = None
    fraction: float | None = None
    largest: float | None = None
    cosine: float | None = None
    strange: int = 0


@dataclass(frozen=True, slots=True)
class Differences:
    """How two checkpoints differ.

    Attributes:
        tensors: those that differ, by falling relative norm; those without numbers first.
        same: how many do not.
        relative, fraction, largest, cosine, strange: as of one tensor, over all that have numbers.
    """

    tensors: tuple[Difference, ...]
    same: int
    relative: float | None = None
    fraction: float | None = None
    largest: float | None = None
    cosine: float | None = None
    strange: int = 0


def differences(
    before: Checkpoint,
    after: Checkpoint,
    *,
    like: Checkpoint | None = None,
    threads: int | None = None,
    progress: Progress = SILENT,
) -> Differences:
    """Compare two checkpoints, tensor by tensor.

    Tensors are compared by their ids where one side knows them: those in a store, and those of files that were hashed
    before. What differs is read once, in blocks, and summed in float64.

    Args:
        before: a.
        after: b.
        like: c, whose change from a is set beside b's.
        threads: how many; the processor's number when None. The numbers do not depend on it.
        progress: told of every byte read of b.

    Raises:
        CheckpointError: something cannot be read.

    >>> import torch
    >>> from cofuse.checkpoint import Memory
    >>> a, b = Memory({"x": torch.tensor([3.0, 4.0])}), Memory({"x": torch.tensor([3.0, 4.5])})
    >>> found = differences(a, b).tensors[0]
    >>> found.status, found.relative, found.fraction, found.largest
    ('changed', 0.1, 0.5, 0.5)
    """
    workers = threads or os.cpu_count() or 1
    before, after = _watched(before), _watched(after)
    names = [n for n in dict.fromkeys([*_all(before), *_all(after)]) if n in before and n in after]
    # A name that both tie to one other name is that one's business.
    names = [n for n in names if before.resolve(n) == n or before.resolve(n) != after.resolve(n)]
    equal = _equal(before, after, names, workers)
    found: list[Difference] = []
    for side, other, status in ((before, after, "removed"), (after, before, "added")):
        for name in _all(side):
            if name not in other:
                spec = side.spec(name)
                gone = status == "removed"
                found.append(Difference(name, status, spec if gone else None, None if gone else spec))
    wanted: dict[str, str] = {}  # name -> status
    for name in names:
        if name not in equal:
            a, b = before.spec(name), after.spec(name)
            wanted[name] = "changed" if a == b else "retyped" if a.shape == b.shape else "reshaped"
    jobs = [name for name, status in wanted.items() if status != "reshaped"]
    sums = measured(before, after, like, jobs, workers, progress)
    alike = {name for name, total in sums.items() if wanted[name] == "changed" and not total.differ}
    for name, status in wanted.items():
        a, b = before.spec(name), after.spec(name)
        total = sums.get(name)
        if name in alike:
            continue
        if total is None or not total.elements:
            found.append(Difference(name, status, a, b))
        else:
            found.append(Difference(name, status, a, b, **total.numbers(like is not None)))
    found.sort(key=lambda one: (-(math.inf if one.relative is None else one.relative), one.status, one.name))
    whole = Sums.of(total for name, total in sums.items() if name not in alike)
    numbers = whole.numbers(like is not None) if whole.elements else {}
    return Differences(tuple(found), len(equal) + len(alike), **numbers)


def tensor_changes(before: Checkpoint, after: Checkpoint) -> dict[str, str]:
    """The status of every tensor that differs, by name, from ids and headers alone; see `Difference`.

    Args:
        before: a checkpoint that knows its ids.
        after: another.
    """
    found = changes(_held(before), _held(after))
    for name, status in found.items():
        if status == "changed" and before.spec(name) != after.spec(name):
            found[name] = "retyped" if before.spec(name).shape == after.spec(name).shape else "reshaped"
    return found


def _held(checkpoint: Checkpoint) -> dict[str, str]:
    ids = _known(checkpoint)
    return {name: ids[checkpoint.resolve(name)] for name in _all(checkpoint)}


def _watched(checkpoint: Checkpoint) -> Checkpoint:
    return checkpoint if hasattr(checkpoint, "tensor_ids") else Hashed(checkpoint)


def _all(checkpoint: Checkpoint) -> Iterator[str]:
    yield from checkpoint.names()
    yield from checkpoint.aliases


def _equal(before: Checkpoint, after: Checkpoint, names: Sequence[str], threads: int) -> set[str]:
    """Names whose tensors have one id, as far as that is known, or is cheaper to find out than to read both."""
    ids = [_known(before), _known(after)]
    for k, side in enumerate((before, after)):
        if isinstance(side, Hashed):
            own = ((name, side.resolve(name)) for name in names if (before, after)[1 - k].resolve(name) in ids[1 - k])
            alike = [kept for name, kept in own if kept not in ids[k] and before.spec(name) == after.spec(name)]
            ids[k] |= side.tensor_ids(dict.fromkeys(alike), threads)
    pairs = ((name, ids[0].get(before.resolve(name)), ids[1].get(after.resolve(name))) for name in names)
    return {name for name, a, b in pairs if a is not None and a == b}


def _known(checkpoint: Checkpoint) -> dict[str, str]:
    if isinstance(checkpoint, Hashed):
        return checkpoint.known_ids()
    ids: Mapping[str, str] = checkpoint.tensor_ids()  # type: ignore[attr-defined]  # `_watched` has seen to it
    return dict(ids)


def files_of(checkpoint: Checkpoint) -> dict[str, str]:
    """The ids of a checkpoint's small files, by name."""
    if isinstance(checkpoint.files, SideFiles):
        return dict(checkpoint.files.ids)
    return {name: file_id(data) for name, data in checkpoint.files.items()}


def changes(before: Mapping[str, object], after: Mapping[str, object]) -> dict[str, str]:
    """`added`, `changed` or `removed` for every key whose value differs, by key.

    >>> changes({"a": 1, "b": 2}, {"b": 3, "c": 4})
    {'a': 'removed', 'b': 'changed', 'c': 'added'}
    """
    return {
        key: "removed" if key not in after else "changed" if key in before else "added"
        for key in sorted({*before, *after})
        if key not in before or key not in after or before[key] != after[key]
    }
