"""The result of a fuse: a checkpoint like any other, computed as it is read."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from ..checkpoint import BLOCK_BYTES, Checkpoint, TensorSpec
from ..checkpoint.dtypes import bits
from .execute import CpuExecutor, Executor
from .methods import METHODS, Method, Place
from .plan import Input, Plan
from .record import RECORD

# Elements of a block. Several float32 buffers of so many are alive in each thread: they should fit the processor's cache,
# and be small enough for malloc to hand the same memory out again instead of asking the system for new pages each time.
BLOCK = 128 * 1024


class Fused(Checkpoint):
    """Several checkpoints made one by a plan; each block is computed when it is read.

    A tensor is always cut into the same blocks, whoever reads which range of it: what a method draws, and what it does
    with ties at a threshold, is keyed by the block's place.
    """

    def __init__(
        self,
        plan: Plan,
        checkpoints: Sequence[Checkpoint],
        executor: Executor | None = None,
        files: Mapping[str, bytes] | None = None,
    ) -> None:
        self.plan = plan
        self.checkpoints = tuple(checkpoints)
        self._leader = checkpoints[plan.leader]
        self._executor = executor or CpuExecutor()
        own = self._leader.files if files is None else files
        # A leader that was fused itself carries the record of how, which is not how this is made.
        self._files = own if RECORD not in own else {name: data for name, data in own.items() if name != RECORD}
        self._aliases = plan.aliases
        self._surveys: dict[str, object] = {}
        self._surveying: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._scanned: set[str] = set()
        self._lock = threading.Lock()
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
        own = self._step(name) * (bits(spec.dtype) // 8)
        step = own * max(1, size // own)
        for start in range(0, spec.nbytes, step):
            yield start, min(start + step, spec.nbytes)

    def read_bytes(self, name: str, start: int = 0, stop: int | None = None) -> bytes | bytearray | memoryview:
        name = self.resolve(name)
        start, stop = self.check_range(name, start, stop)
        plan = self.plan.tensors[name]
        if plan.method is None:
            (source,) = plan.inputs
            return self.checkpoints[source.checkpoint].read_bytes(source.name, start, stop)
        step = self._step(name) * (bits(plan.spec.dtype) // 8)
        out = np.empty(stop - start, np.uint8)
        for index in range(start // step, -(-stop // step) if stop > start else 0):
            block = self._executor.block(self, name, index)
            first = index * step
            low, high = max(start, first), min(stop, first + len(block))
            out[low - start : high - start] = block[low - first : high - first]
        return out.data

    # What executors ask

    def inputs(self, name: str) -> Iterator[tuple[Checkpoint, str]]:
        """The models' tensors that a tensor is made from."""
        for source in self.plan.tensors[name].inputs:
            yield self.checkpoints[source.checkpoint], source.name

    def base_input(self, name: str) -> tuple[Checkpoint, str] | None:
        """The base's."""
        source = self.plan.tensors[name].base
        return None if source is None else (self.checkpoints[source.checkpoint], source.name)

    def wide(self, name: str) -> bool:
        """Whether a tensor is computed in float64: something in it is float64."""
        plan = self.plan.tensors[name]
        sources: tuple[Input, ...] = plan.inputs if plan.base is None else (*plan.inputs, plan.base)
        return plan.spec.dtype == "F64" or any(
            self.checkpoints[s.checkpoint].spec(s.name).dtype == "F64" for s in sources
        )

    def place(self, name: str, index: int) -> Place:
        """Where a block lies."""
        shape = self.spec(name).shape
        return Place(name, shape, index, index * self._step(name), self.plan.recipe.seed)

    def block_shape(self, place: Place) -> tuple[int, ...]:
        """The shape in which a method is handed a block."""
        method = self._method(place.tensor)
        spec = self.spec(place.tensor)
        if method is not None and method.unit == "tensor":
            return spec.shape
        count = min(self._step(place.tensor), spec.numel - place.start)
        if method is not None and method.unit == "row":
            row = _row(spec.shape)
            return (count // row if row else 0, row)
        return (count,)

    def known(self, name: str) -> object:
        """What a tensor's method has found out about the whole; found once, by the first thread that asks."""
        method = self._method(name)
        assert method is not None  # copied tensors are not surveyed
        key = name if method.scope == "tensor" else ""
        with self._lock:
            lock = self._surveying[key]
        with lock:
            if key not in self._surveys:
                names = [name] if key else [n for n, t in self.plan.tensors.items() if t.method is not None]
                places = [self.place(n, i) for n in names for i in range(self._count(n))]
                self._surveys[key] = self._executor.survey(self, name, places)
            return self._surveys[key]

    def scanned(self, name: str, *, now: bool = False) -> bool:
        """Whether a survey has gone over every value of a tensor's inputs, all finite; `now` says that it has."""
        method = self._method(name)
        key = name if method is None or method.scope == "tensor" else ""
        if now:
            self._scanned.add(key)
        return key in self._scanned

    def _method(self, name: str) -> Method | None:
        method = self.plan.tensors[self.resolve(name)].method
        return None if method is None else METHODS[method]

    def _step(self, name: str) -> int:
        """Elements of each block of a tensor but the last."""
        method, spec = self._method(name), self.spec(name)
        if method is None or method.unit == "block":
            return BLOCK
        row = _row(spec.shape)
        if method.unit == "tensor" or not row:
            return max(1, spec.numel)
        return row * max(1, BLOCK // row)

    def _count(self, name: str) -> int:
        return -(-self.spec(name).numel // self._step(name))

    @property
    def metadata(self) -> Mapping[str, str]:
        return {k: v for k, v in self._leader.metadata.items() if k not in self._leader.aliases}

    @property
    def where(self) -> str:
        return f"{self.plan.recipe.merge_method} of {len(self.plan.recipe.parts)} models"


def _row(shape: tuple[int, ...]) -> int:
    """Elements of a row: of all but the first dimension; a vector is one row."""
    return int(np.prod(shape[1:] if len(shape) > 1 else shape, dtype=np.int64))
