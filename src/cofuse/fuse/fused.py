"""The result of a fuse: a checkpoint like any other, computed as it is read."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..checkpoint import BLOCK_BYTES, Checkpoint, TensorSpec
from ..checkpoint.dtypes import bits
from .execute import CpuExecutor, Executor
from .methods import METHODS, Method, Place, Unit
from .plan import Input, Plan
from .record import RECORD

# Elements of a block. Several float32 buffers of so many are alive in each thread: they should fit the processor's cache,
# and be small enough for malloc to hand the same memory out again instead of asking the system for new pages each time.
BLOCK = 256 * 1024


class Source(NamedTuple):
    """A tensor that goes in, with what every read of it needs."""

    checkpoint: Checkpoint
    name: str
    dtype: str
    width: int  # bytes of an element


@dataclass(frozen=True, slots=True)
class Tensor:
    """What is the same for all blocks of a fused tensor.

    Attributes:
        spec, numel: of the result.
        unit: how it is cut.
        scope: what its survey is kept under: its name, or "" where one survey goes over all tensors.
        row: elements of a row, all dimensions but the first; a vector is one row.
        step: elements of each block but the last.
        wide: computed in float64, because something in it is float64.
        models, base: where it is read from.
        statistics: where the models' statistics are, by their names.
    """

    spec: TensorSpec
    numel: int
    unit: Unit
    scope: str
    row: int
    step: int
    wide: bool
    models: tuple[Source, ...]
    base: Source | None
    statistics: Mapping[str, tuple[Source, ...]]


class Fused(Checkpoint):
    """Several checkpoints made one by a plan; each block is computed when it is read.

    A tensor is always cut into the same blocks, whoever reads which range of it: what a method draws, and what it does
    with ties at a threshold, is keyed by the block's place.

    Args:
        plan: what happens to each tensor.
        checkpoints: in the order of the plan's inputs.
        executor: where blocks are computed; the processor when None.
        files: of the result; the leader's when None.
        before: called before anything is read; what it raises, every read raises.
    """

    def __init__(
        self,
        plan: Plan,
        checkpoints: Sequence[Checkpoint],
        executor: Executor | None = None,
        files: Mapping[str, bytes] | None = None,
        *,
        before: Callable[[], None] | None = None,
    ) -> None:
        self.plan = plan
        self.checkpoints = tuple(checkpoints)
        self._leader = checkpoints[plan.leader]
        self._executor = executor or CpuExecutor()
        own = self._leader.files if files is None else files
        # A leader that was fused itself carries the record of how, which is not how this is made.
        self._files = own if RECORD not in own else {name: data for name, data in own.items() if name != RECORD}
        self._aliases = plan.aliases
        self._tensors: dict[str, Tensor] = {}
        self._surveys: dict[str, object] = {}
        self._surveying: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._scanned: set[str] = set()
        self._lock = threading.Lock()
        self._before, self._beginning = before, threading.Lock()
        # Held by whoever computes a tensor so large that another one beside it would double the memory. Each fuse has its
        # own: one of its models may be such a fuse too, read by threads that this one waits for.
        self.alone = threading.Lock()

    def names(self) -> tuple[str, ...]:
        return tuple(self.plan.tensors)

    def spec(self, name: str) -> TensorSpec:
        tensor = self.plan.tensors.get(self.resolve(name))
        if tensor is None:
            raise self.missing(name)
        return tensor.spec

    def blocks(self, name: str, size: int = BLOCK_BYTES) -> Iterator[tuple[int, int]]:
        if self._method(name) is None:
            yield from super().blocks(name, size)
            return
        # Whole blocks, as many as `size` has room for.
        spec = self.spec(name)
        own = self.tensor(self.resolve(name)).step * (bits(spec.dtype) // 8)
        step = own * max(1, size // own)
        for start in range(0, spec.nbytes, step):
            yield start, min(start + step, spec.nbytes)

    def read_bytes(self, name: str, start: int = 0, stop: int | None = None) -> bytes | bytearray | memoryview:
        name = self.resolve(name)
        start, stop = self.check_range(name, start, stop)
        if self._before is not None:
            self._begin()
        plan = self.plan.tensors[name]
        if plan.method is None:
            (source,) = plan.inputs
            return self.checkpoints[source.checkpoint].read_bytes(source.name, start, stop)
        width = bits(plan.spec.dtype) // 8
        step = self.tensor(name).step * width
        out = np.empty(stop - start, np.uint8)
        if start == stop:
            return b""
        if start % width == stop % width == 0 and self._executor.combine(self, name, start // width, out):
            return out.data
        for index in range(start // step, -(-stop // step)):
            block = self._executor.block(self, name, index)
            first = index * step
            low, high = max(start, first), min(stop, first + len(block))
            out[low - start : high - start] = block[low - first : high - first]
        return out.data

    def surveyed_like(self, other: Fused) -> Fused:
        """This fuse, with what another finds out about the whole; of a method whose survey no weight changes.

        Args:
            other: of the same method, checkpoints and parameters, the models' weights but for.
        """
        self._surveys, self._surveying, self._scanned = other._surveys, other._surveying, other._scanned
        self._lock = other._lock
        return self

    # What executors ask

    def tensor(self, name: str) -> Tensor:
        """All that is the same for every block of a fused tensor."""
        found = self._tensors.get(name)
        if found is None:
            found = self._tensors[name] = self._resolved(name)
        return found

    def place(self, name: str, index: int) -> Place:
        """Where a block lies."""
        tensor = self.tensor(name)
        return Place(name, tensor.spec.shape, index, index * tensor.step, self.plan.recipe.seed)

    def block_shape(self, place: Place, source: Source | None = None) -> tuple[int, ...]:
        """The shape in which a method is handed a block; of a statistic, whose whole may have a shape of its own."""
        tensor = self.tensor(place.tensor)
        if tensor.unit == "tensor":
            return tensor.spec.shape if source is None else source.checkpoint.spec(source.name).shape
        count = min(tensor.step, tensor.numel - place.start)
        if tensor.unit == "row":
            return (count // tensor.row if tensor.row else 0, tensor.row)
        return (count,)

    def known(self, name: str) -> object:
        """What a tensor's method has found out about the whole; found once, by the first thread that asks."""
        key = self.tensor(name).scope
        with self._lock:
            lock = self._surveying[key]
        with lock:
            if key not in self._surveys:
                method = self.plan.tensors[name].method
                names = [name] if key else [n for n, t in self.plan.tensors.items() if t.method == method]
                places = [self.place(n, i) for n in names for i in range(self._count(n))]
                self._surveys[key] = self._executor.survey(self, name, places)
            return self._surveys[key]

    def scanned(self, name: str, *, now: bool = False) -> bool:
        """Whether a survey has gone over every value of a tensor's inputs, all finite; `now` says that it has."""
        key = self.tensor(name).scope
        if now:
            self._scanned.add(key)
        return key in self._scanned

    def _begin(self) -> None:
        with self._beginning:
            if self._before is not None:
                self._before()
                self._before = None

    def _resolved(self, name: str) -> Tensor:
        plan = self.plan.tensors[name]
        assert plan.method is not None  # copied tensors have no blocks of their own
        method, spec = METHODS[plan.method], plan.spec
        row = int(np.prod(spec.shape[1:] if len(spec.shape) > 1 else spec.shape, dtype=np.int64))
        step = BLOCK
        if method.unit != "block":
            step = max(1, spec.numel) if method.unit == "tensor" or not row else row * max(1, BLOCK // row)
        models = tuple(self._source(source) for source in plan.inputs)
        base = None if plan.base is None else self._source(plan.base)
        wide = "F64" in {spec.dtype, *(s.dtype for s in models), "" if base is None else base.dtype}
        scope = name if method.scope == "tensor" else ""
        statistics = {key: tuple(self._source(source) for source in own) for key, own in plan.statistics.items()}
        return Tensor(spec, spec.numel, method.unit, scope, row, step, wide, models, base, statistics)

    def _source(self, source: Input) -> Source:
        checkpoint = self.checkpoints[source.checkpoint]
        dtype = checkpoint.spec(source.name).dtype
        return Source(checkpoint, source.name, dtype, bits(dtype) // 8)

    def _method(self, name: str) -> Method | None:
        method = self.plan.tensors[self.resolve(name)].method
        return None if method is None else METHODS[method]

    def _count(self, name: str) -> int:
        tensor = self.tensor(name)
        return -(-tensor.numel // tensor.step)

    @property
    def metadata(self) -> Mapping[str, str]:
        return {k: v for k, v in self._leader.metadata.items() if k not in self._leader.aliases}

    @property
    def where(self) -> str:
        return f"{self.plan.recipe.merge_method} of {len(self.plan.recipe.parts)} models"
