"""Blocks computed by torch on a device: the same functions, on tensors there.

Results agree with `CpuExecutor` to rounding: sums are added in another order, and exponentials and roots differ in
their last bit (see `TOLERANCE`). On one kind of device they are the same bytes from run to run.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from ...checkpoint import Checkpoint, map_each
from ...checkpoint.dtypes import bits
from ...errors import FuseError
from ..methods import METHODS, Array, Look, Method, Place, keyword_arguments
from .cpu import below

if TYPE_CHECKING:
    from ..fused import Fused, Source

T = TypeVar("T")

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
# Against CpuExecutor, relative to the largest of an entry's inputs: in float32, and one rounding of the result's dtype.
# Entries that lie at a threshold may fall on its other side.
TOLERANCE = 1e-5
# Consecutive blocks that are computed together: a GPU is idle while it is told what to do with small ones. So many that
# what a writer's thread asks for at a time is a whole number of such runs.
TOGETHER = 16


class TorchExecutor:
    """Computes blocks on a device; several threads keep several of them on their way.

    Each thread stages what it reads in two pinned buffers by turns and copies from them on a stream of its own, so that
    reading, copying and computing overlap.
    """

    def __init__(self, device: str = "cuda", threads: int | None = None, together: int = TOGETHER) -> None:
        """Args: a torch device; threads of the surveys; blocks that are computed together where the method allows it.

        Raises:
            FuseError: there is no such device here.
        """
        self.device = _device(device)
        self.threads = threads or os.cpu_count() or 1
        self.together = together
        self._own = threading.local()

    def block(self, fused: Fused, name: str, index: int) -> npt.NDArray[np.uint8]:
        """The stored bytes of one block of a fused tensor."""
        plan = fused.plan.tensors[name]
        assert plan.method is not None  # copied tensors never come here
        method = METHODS[plan.method]
        place = fused.place(name, index)
        known = {} if method.survey is None else {"known": fused.known(name)}
        size = int(np.prod(fused.block_shape(fused.place(name, 0)), dtype=np.int64))
        if not _joins(method) or self.together <= 1:
            return self._computed(fused, method, _Run(place, size, fused.block_shape(place)), known)
        first = index - index % self.together
        # The reader goes through the blocks in order: those that were computed with the last one wait here.
        if not self._waits(fused, name, first):
            run = _run(fused, fused.place(name, first), size, self.together)
            self._own.result = self._computed(fused, method, run, known)
            self._own.run = (weakref.ref(fused), name, first)
        width = bits(plan.spec.dtype) // 8
        begin = (index - first) * size * width
        found: npt.NDArray[np.uint8] = self._own.result[begin : begin + size * width]
        return found

    def combine(self, fused: Fused, name: str, start: int, out: npt.NDArray[np.uint8]) -> bool:
        """Never: blocks are computed together anyway."""
        return False

    def survey(self, fused: Fused, name: str, places: list[Place]) -> object:
        """What a method must know of all these blocks."""
        plan = fused.plan.tensors[name]
        assert plan.method is not None
        method = METHODS[plan.method]
        assert method.survey is not None
        runs = list(_runs(fused, places, self.together if _joins(method) else 1))

        return method.survey(_Scan(self, fused, runs), **keyword_arguments(plan.parameters))

    def looked_at(self, fused: Fused, run: _Run, look: Look[T], statistic: str | None) -> T:
        """What a survey sees of one run: the models' blocks, or those of a statistic of theirs."""
        staging = self._staging()
        with staging.working():
            inputs = _Inputs(fused, run, staging)
            with inputs.checked():
                if statistic is not None:
                    return look(inputs.statistics(statistic), None, run.place)
                return look(inputs.models(), inputs.base(), run.place)

    def _waits(self, fused: Fused, name: str, first: int) -> bool:
        owner, *run = getattr(self._own, "run", (lambda: None, "", 0))
        return owner() is fused and run == [name, first]

    def _computed(self, fused: Fused, method: Method, run: _Run, known: dict[str, Any]) -> npt.NDArray[np.uint8]:
        name = run.place.tensor
        plan = fused.plan.tensors[name]
        arguments = {**keyword_arguments(plan.parameters), **known}
        if method.placed:
            arguments["place"] = run.place
        staging = self._staging()
        inputs = _Inputs(fused, run, staging)
        with staging.working(), inputs.checked():
            arguments |= {statistic: inputs.statistics(statistic) for statistic in method.statistics}
            # Compiled kernels are for the processor: their plain twins run anywhere.
            result: Any = method.function(inputs.models(), inputs.base(), **arguments)
            stored = result.to(DTYPES[plan.spec.dtype]).contiguous()
            finite = torch.isfinite(stored.float() if stored.dtype.itemsize == 1 else stored).all()
            raw = staging.down(stored.reshape(-1).view(torch.uint8))
        if not finite.item():
            raise FuseError(
                "the result is too large for its dtype",
                where=f"{fused.where}: {name}",
                got=plan.spec.dtype,
                hint="smaller weights, or out_dtype: float32",
            )
        return raw

    def _staging(self) -> _Staging:
        if not hasattr(self._own, "staging"):
            self._own.staging = _Staging(self.device)
        found: _Staging = self._own.staging
        return found


@dataclass(frozen=True, slots=True)
class _Run:
    """Consecutive blocks of one tensor: where the first one lies, how many elements, the shape they are handed over in."""

    place: Place
    size: int
    shape: tuple[int, ...]


def _joins(method: Method) -> bool:
    # A method that knows the place of a block may have keyed something by it.
    return method.unit == "block" and not method.placed


def _run(fused: Fused, place: Place, size: int, count: int) -> _Run:
    if count == 1:
        return _Run(place, size, fused.block_shape(place))
    left = int(np.prod(place.shape, dtype=np.int64)) - place.start
    return _Run(place, size, (min(left, size * count),))


def _runs(fused: Fused, places: list[Place], together: int) -> Iterator[_Run]:
    for place in places:
        if place.index % together == 0:
            size = int(np.prod(fused.block_shape(fused.place(place.tensor, 0)), dtype=np.int64))
            yield _run(fused, place, size, together)


class _Scan:
    """A scan over runs of blocks, in the executor's threads."""

    def __init__(self, executor: TorchExecutor, fused: Fused, runs: list[_Run]) -> None:
        self._executor, self._fused, self._runs = executor, fused, runs

    def __call__(self, look: Look[T]) -> list[T]:
        return self._over(look, None)

    def of(self, statistic: str, look: Look[T]) -> list[T]:
        """See `StatisticsScan`."""
        return self._over(look, statistic)

    def _over(self, look: Look[T], statistic: str | None) -> list[T]:
        executor, fused = self._executor, self._fused
        return map_each(lambda run: executor.looked_at(fused, run, look, statistic), self._runs, executor.threads)


class _Inputs:
    """The inputs of one run on the device, each read when it is asked for."""

    def __init__(self, fused: Fused, run: _Run, staging: _Staging) -> None:
        self._fused, self._run, self._staging = fused, run, staging
        self._dtype = torch.float64 if fused.tensor(run.place.tensor).wide else torch.float32
        self._finite: list[tuple[torch.Tensor, Checkpoint, str]] = []
        self._bounded: list[tuple[torch.Tensor, Source, str, float]] = []

    def models(self) -> Iterator[Array]:
        for source in self._fused.tensor(self._run.place.tensor).models:
            yield self._load(source.checkpoint, source.name)

    def base(self) -> Array | None:
        source = self._fused.tensor(self._run.place.tensor).base
        return None if source is None else self._load(source.checkpoint, source.name)

    def statistics(self, statistic: str) -> Iterator[Array]:
        """The models' blocks of a statistic; of a whole tensor, all of it."""
        fused, place = self._fused, self._run.place
        low = METHODS[fused.plan.tensors[place.tensor].method or ""].statistics[statistic].low
        for source in fused.tensor(place.tensor).statistics[statistic]:
            whole = fused.tensor(place.tensor).unit == "tensor"
            shape = fused.block_shape(place, source) if whole else self._run.shape
            values: Any = self._load(source.checkpoint, source.name, shape)
            if low is not None and values.numel():
                self._bounded.append((values.min(), source, statistic, low))
            yield values

    @contextmanager
    def checked(self) -> Iterator[None]:
        """What is computed inside counts only if all inputs were finite; one wait for all of them.

        Raises:
            FuseError: one was not, whatever else went wrong because of it.
        """
        try:
            yield
        finally:
            if self._finite and not bool(torch.stack([flag for flag, _, _ in self._finite]).all()):
                _, checkpoint, name = next(found for found in self._finite if not bool(found[0]))
                raise _not_finite(checkpoint, name, self._run)
            for least, source, statistic, low in self._bounded:
                if float(least) < low:
                    values = source.checkpoint.read(source.name).reshape(-1)
                    at = int((values < low).int().argmax())
                    raise below(source, statistic, low, float(values[at]), at)

    def _load(self, checkpoint: Checkpoint, name: str, shape: tuple[int, ...] | None = None) -> Array:
        shape = self._run.shape if shape is None else shape
        code = checkpoint.spec(name).dtype
        width = bits(code) // 8
        count = int(np.prod(shape, dtype=np.int64))

        def fill(raw: memoryview) -> None:
            checkpoint.read_into(name, self._run.place.start * width, raw)

        raw = self._staging.up(count * width, fill)
        # In memory of its own: methods may overwrite it.
        values = raw.view(DTYPES[code]).to(torch.float64 if code == "F64" else self._dtype)
        self._finite.append((torch.isfinite(values).all(), checkpoint, name))
        found: Any = values.reshape(shape)
        return found  # type: ignore[no-any-return]


class _Staging:
    """One thread's way to the device and back."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._gpu = device.type == "cuda"
        self._turn = 0
        self._host: list[torch.Tensor] = [torch.empty(0, dtype=torch.uint8)] * 2
        self._copied: list[Any] = [None, None]
        if self._gpu:
            self._copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self._computes = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def working(self) -> Any:
        """The context in which this thread's work is put on its own stream."""
        return torch.cuda.stream(self._computes) if self._gpu else nullcontext()

    def up(self, size: int, fill: Callable[[memoryview], None]) -> torch.Tensor:
        """Bytes on the device, in memory of their own; `fill` writes them into host memory first."""
        if not self._gpu:
            raw = torch.empty(size, dtype=torch.uint8)
            if size:
                fill(raw.numpy().data)
            return raw
        self._turn = turn = 1 - self._turn
        if self._copied[turn] is not None:
            self._copied[turn].synchronize()  # the copy before the last, as a rule done long ago
        if self._host[turn].numel() < size:
            self._host[turn] = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        host = self._host[turn][:size]
        if size:
            fill(host.numpy().data)
        with torch.cuda.stream(self._copies):
            raw = torch.empty(size, dtype=torch.uint8, device=self._device)
            raw.copy_(host, non_blocking=True)
            self._copied[turn] = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied[turn].record(self._copies)
        self._computes.wait_event(self._copied[turn])
        raw.record_stream(self._computes)  # its memory is not handed out again before that stream is done with it
        return raw

    def down(self, raw: torch.Tensor) -> npt.NDArray[np.uint8]:
        """Bytes from the device, when all that they wait for is done."""
        if not self._gpu:
            return raw.numpy()
        host = torch.empty(raw.numel(), dtype=torch.uint8, pin_memory=True)
        host.copy_(raw, non_blocking=True)
        self._computes.synchronize()
        return host.numpy()


def _not_finite(checkpoint: Checkpoint, name: str, run: _Run) -> FuseError:
    tensor = checkpoint.read(name).reshape(-1)[run.place.start :].double()
    at = int((~torch.isfinite(tensor)).int().argmax())
    return FuseError(
        "a value is not finite",
        where=f"{checkpoint.where}: {name}",
        got=f"{tensor[at].item()} at element {run.place.start + at}",
        hint="leave this model out",
    )


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        if device.type not in {"cpu", "cuda"}:
            raise RuntimeError("only cpu and cuda are known")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise FuseError(
            "no such device here",
            got=name,
            expected="cpu, or cuda where torch finds a GPU",
            hint=str(error).splitlines()[0],
        ) from None
    return device
