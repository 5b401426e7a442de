"""How much a change alters a model's output, told by the diagonal of its Fisher before any forward pass.

    E_x KL(p_theta || p_theta+delta)  is about  1/2 delta' F delta  is about  1/2 sum_j F_j delta_j^2    nats an example

The first step leaves out what is of third order in delta, the second all that two parameters do together
(`quadratic.py` measures that). The second is close for noise, rounding and pruning. Training moves parameters together:
there the diagonal says far too little (docs/results/fisher.md, section 5), and is for comparing changes of one kind.
Never imports torch: `cofuse show` prints it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...checkpoint import CHUNK, Checkpoint, TensorSpec, for_each
from ...checkpoint.bitcode import width_of
from ...checkpoint.floats import FLOATS, as_floats
from ...errors import CheckpointError
from ...patch import Applied
from ...progress import SILENT, Progress
from ..statistics.record import open_statistics

_PIECE = 1 << 17  # elements that are summed at a time: what stays in a core's cache


@dataclass(frozen=True, slots=True)
class Predicted:
    """What a change is predicted to do.

    Attributes:
        tensors: predicted KL of each tensor that changes, in nats an example; the largest first.
        missing: tensors that change and have no statistics: what they do is not in the total.
        unlike: tensors that come, go, change their shape or are no floats: no small change.
    """

    tensors: Mapping[str, float]
    missing: tuple[str, ...] = ()
    unlike: tuple[str, ...] = ()

    @property
    def total(self) -> float:
        """Of all tensors, in nats an example."""
        return sum(self.tensors.values())


def predict(
    base: Checkpoint,
    changed: Checkpoint,
    fisher: Checkpoint,
    *,
    anywhere: bool = False,
    threads: int | None = None,
    progress: Progress = SILENT,
) -> Predicted:
    """Predict the KL between a model's output and that of the model after a change.

        KL_t = 1/2 sum_{j in t} F_j (changed_j - base_j)^2    of each tensor t

    Args:
        base: the model that the Fisher was taken of.
        changed: the base with a change: `apply(base, patch)`, or a tuned model. Of a patch that leaves most chunks as
            they are, those are not read; but for the base's id, where it is not known (`Hashed` knows).
        fisher: the diagonal, as `measure.fisher` gives it: the mean over examples, with labels drawn from the model.
        anywhere: take statistics of another model with the same names and shapes, such as one that the base came from.
            What is predicted is then good for comparing changes of the same base, no more.
        threads: how many; the processor's number when None. The result does not depend on it.
        progress: told of every value that is done.

    Returns:
        The prediction of each tensor, and which have none.

    Raises:
        TaskError: these are no statistics, or another model's.
        CheckpointError: a statistic does not fit, is negative or not finite; a value is not finite.

    Memory: three chunks of 4 MiB for each thread.

    Source: Martens, "New insights and perspectives on the natural gradient method", arXiv 1412.1193; the diagonal as in
    Matena and Raffel, arXiv 2111.09832, sec. 3.

    >>> import torch
    >>> from cofuse.checkpoint import Memory, content_id
    >>> from cofuse.measure.statistics.record import StatisticsRecord, with_record
    >>> base, changed = Memory({"w": torch.zeros(2)}), Memory({"w": torch.tensor([0.5, 1.0])})
    >>> record = StatisticsRecord(kind="fisher", model=content_id(base), examples=1)
    >>> predict(base, changed, with_record({"w": torch.tensor([4.0, 0.25])}, record)).tensors
    {'w': 0.625}
    """
    open_statistics(fisher, "fisher", model=None if anywhere else base)
    common, unlike = _common(base, changed)
    _check_fits(fisher, common)
    found: dict[str, dict[int, float]] = {}
    missing: set[str] = set()
    jobs = list(_chunks(base, changed, common))
    bar = progress.bar("predicting", sum(stop - start for _, start, stop in jobs))

    def add(job: tuple[str, int, int]) -> None:
        name, start, stop = job
        change = _change(base, changed, name, start, stop)
        if change is not None and name not in fisher:
            if not np.isfinite(change[1]).all():
                raise CheckpointError("a value is not finite", where=f"{changed.where}: {name}")
            missing.add(name)
        elif change is not None:
            where, delta = change
            found.setdefault(name, {})[start] = _half_squares(_statistics(fisher, name, start, stop), where, delta)
        bar.advance(stop - start)

    for_each(add, jobs, threads or os.cpu_count() or 1)
    # In the order of the chunks, whichever thread was done first.
    tensors = {name: sum(parts[start] for start in sorted(parts)) for name, parts in found.items()}
    for name, value in tensors.items():
        if not math.isfinite(value):
            raise CheckpointError("a value is not finite", where=f"{changed.where}: {name}, or its statistics")
    order = sorted(tensors, key=lambda name: (-tensors[name], name))
    return Predicted({name: tensors[name] for name in order}, tuple(sorted(missing)), unlike)


def _check_fits(fisher: Checkpoint, specs: Mapping[str, TensorSpec]) -> None:
    for name, spec in specs.items():
        found = fisher.spec(name) if name in fisher else None
        if found is not None and (found.shape != spec.shape or found.dtype not in FLOATS):
            raise CheckpointError(
                "the Fisher does not fit the model",
                where=f"{fisher.where}: {name}",
                got=f"{found.dtype} {list(found.shape)}",
                expected=f"a float {list(spec.shape)}",
            )


def _common(base: Checkpoint, changed: Checkpoint) -> tuple[dict[str, TensorSpec], tuple[str, ...]]:
    """The tensors whose change is a difference, and the names of the others as far as they differ."""
    before, after = ({name: cp.spec(name) for name in cp.names()} for cp in (base, changed))
    common, unlike = {}, set(before) ^ set(after)
    for name in sorted(set(before) & set(after), key=str.encode):
        one, two = before[name], after[name]
        if one.shape == two.shape and one.dtype in FLOATS and two.dtype in FLOATS:
            common[name] = one
        elif one != two or _differs(base, changed, name):
            unlike.add(name)
    return common, tuple(sorted(unlike))


def _differs(base: Checkpoint, changed: Checkpoint, name: str) -> bool:
    return any(base.read_bytes(name, *block) != changed.read_bytes(name, *block) for block in base.blocks(name))


def _chunks(base: Checkpoint, changed: Checkpoint, specs: Mapping[str, TensorSpec]) -> Iterator[tuple[str, int, int]]:
    """Ranges of elements, a chunk of the base each, but for those that a patch leaves as they are."""
    patch = changed.patch if isinstance(changed, Applied) and changed.base is base else None
    for name, spec in specs.items():
        size = CHUNK // width_of(spec.dtype)
        said = None if patch is None else patch.change(name)
        if patch is not None and said is None:
            continue
        for number, start in enumerate(range(0, spec.numel, size)):
            if patch is not None and said is not None and said.how == "edit" and not patch.coded(name, number).data:
                continue
            yield name, start, min(start + size, spec.numel)


def _change(
    base: Checkpoint, changed: Checkpoint, name: str, start: int, stop: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]] | None:
    """Which elements of a stretch change, and by how much; None where none does."""
    before, after = (_floats(cp, name, start, stop) for cp in (base, changed))
    where = np.flatnonzero(before != after)  # NaN differs from itself: it is found, and refused by its sum
    if not len(where):
        return None
    with np.errstate(invalid="ignore"):
        return where, after[where].astype(np.float64) - before[where].astype(np.float64)


def _half_squares(statistics: Any, where: npt.NDArray[np.intp], delta: npt.NDArray[np.float64]) -> float:
    """1/2 sum F delta^2 over the elements that change."""
    total = 0.0
    with np.errstate(all="ignore"):
        for at in range(0, len(where), _PIECE):
            some = delta[at : at + _PIECE]
            total += float((statistics[where[at : at + _PIECE]].astype(np.float64) * some * some).sum())
    return total / 2


def _statistics(fisher: Checkpoint, name: str, start: int, stop: int) -> Any:
    values = _floats(fisher, name, start, stop)
    if values.size and float(values.min()) < 0:
        raise CheckpointError("a Fisher is not negative", where=f"{fisher.where}: {name}", got=float(values.min()))
    return values


def _floats(checkpoint: Checkpoint, name: str, start: int, stop: int) -> Any:
    dtype = checkpoint.spec(name).dtype
    width = width_of(dtype)
    data = checkpoint.read_bytes(name, start * width, stop * width)
    return as_floats(np.frombuffer(data, np.uint8), dtype, np.float64 if dtype == "F64" else np.float32)
