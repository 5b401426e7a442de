"""Blocks computed on the processor: numpy, and compiled kernels where a method names one."""

from __future__ import annotations

import importlib
import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from ...checkpoint import map_each
from ...checkpoint.floats import STORED, as_floats, as_stored
from ...errors import FuseError
from ..methods import METHODS, Array, Look, Method, Place, keyword_arguments
from ..methods.gram import terms

if TYPE_CHECKING:
    from ..fused import Fused, Source, Tensor

T = TypeVar("T")

# Tensors of more elements that a method takes whole are computed one at a time, whatever the number of threads.
LARGE = 1 << 24
# Bytes to be read from which on a fuse of one pass repays the third of a second that the compiler takes to start.
PAYS = 3 << 30
# Bytes of stored blocks that a thread holds, and the entries that its pieces are whole numbers of.
HELD = 4 << 20
WHOLE = 4096


class CpuExecutor:
    """Computes each block in the thread that asks for it; surveys in threads of its own."""

    def __init__(self, threads: int | None = None) -> None:
        self.threads = threads or os.cpu_count() or 1
        self._scratch = threading.local()

    def block(self, fused: Fused, name: str, index: int) -> npt.NDArray[np.uint8]:
        """The stored bytes of one block of a fused tensor."""
        plan = fused.plan.tensors[name]
        assert plan.method is not None  # copied tensors never come here
        with fused.alone if METHODS[plan.method].unit == "tensor" and plan.spec.numel > LARGE else nullcontext():
            return self._computed(fused, name, index)

    def _computed(self, fused: Fused, name: str, index: int) -> npt.NDArray[np.uint8]:
        plan = fused.plan.tensors[name]
        assert plan.method is not None
        method = METHODS[plan.method]
        place = fused.place(name, index)
        arguments: dict[str, Any] = keyword_arguments(plan.parameters)
        if method.survey is not None:
            arguments["known"] = fused.known(name)
        if method.placed:
            arguments["place"] = place
        check = not fused.scanned(name)
        arguments |= {statistic: self.statistics(fused, place, statistic) for statistic in method.statistics}
        models, base = self.models(fused, place, check), self.base(fused, place, check)
        result = compiled(method)(models, base, **arguments)
        if _quick(method, plan.spec.dtype) and result.dtype == np.float32:
            finite: bool
            stored: npt.NDArray[np.uint8]
            stored, finite = _kernel("mixing:narrow")(result)
        else:
            stored = as_stored(result, plan.spec.dtype)
            finite = _finite(stored, plan.spec.dtype)
        if not finite:
            raise FuseError(
                "the result is too large for its dtype",
                where=f"{fused.where}: {name}",
                got=plan.spec.dtype,
                hint="smaller weights, or out_dtype: float32",
            )
        return stored

    def survey(self, fused: Fused, name: str, places: list[Place]) -> object:
        """What a method must know of all these blocks."""
        plan = fused.plan.tensors[name]
        assert plan.method is not None
        method = METHODS[plan.method]
        assert method.survey is not None
        return method.survey(_Scan(self, fused, name, places), **keyword_arguments(plan.parameters))

    def combine(self, fused: Fused, name: str, start: int, out: npt.NDArray[np.uint8]) -> bool:
        """Compute a stretch of a fused tensor that is a linear combination, from the stored bytes, into `out`.

        Where a block ends does not matter to a combination, so a stretch may lie anywhere.

        `start` is the first element of the stretch, `out` its stored bytes.

        Returns:
            False where that does not pay or is not to be had, or when something is not finite: the way through floats
            finds out what, and where.
        """
        plan, tensor = fused.plan.tensors[name], fused.tensor(name)
        assert plan.method is not None
        method = METHODS[plan.method]
        if method.mix is None or not (method.survey or fused.plan.bytes_read >= PAYS) or not _alike(tensor):
            return False
        arguments: dict[str, Any] = keyword_arguments(plan.parameters)
        if method.survey is not None:
            arguments["known"] = fused.known(name)
        if method.placed:
            arguments["place"] = fused.place(name, start // tensor.step)
        shares = method.mix(len(tensor.models), **arguments)
        if shares is None:
            return False
        kernel, entries, how = _kernel("mixing:combine"), out.view(_kind(tensor)), terms(shares)
        pieces = _pieces(tensor, start, start + len(entries))
        return all(
            kernel(rows, shares, *how, entries[first - start : first - start + rows.shape[1]])
            for first, rows in self.stored(tensor, pieces)
        )

    def stored(
        self, tensor: Tensor, pieces: Iterable[tuple[int, int]]
    ) -> Iterator[tuple[int, npt.NDArray[np.uint16 | np.float32]]]:
        """Stretches of the base, if there is one, and of each model as they are stored.

        Yields:
            Where a piece starts; the piece, [vectors, entries], in memory that the next one is read into.
        """
        sources, kind = _sources(tensor), _kind(tensor)
        width = sources[0].width
        # A model may be a fuse of its own, computed by this thread: it must not find this memory.
        held: npt.NDArray[np.uint8] = self._scratch.__dict__.pop("held", np.empty(0, np.uint8))
        for start, stop in pieces:
            size = (stop - start) * width
            if len(held) < len(sources) * size:
                held = np.empty(len(sources) * size, np.uint8)
            rows = held[: len(sources) * size].reshape(len(sources), size)
            for row, source in zip(rows, sources, strict=True):
                source.checkpoint.read_into(source.name, start * width, row.data)
            yield start, rows.view(kind)
        self._scratch.held = held

    def models(self, fused: Fused, place: Place, check: bool) -> Iterator[Array]:
        for source in fused.tensor(place.tensor).models:
            yield self._load(fused, source, place, check)

    def base(self, fused: Fused, place: Place, check: bool) -> Array | None:
        source = fused.tensor(place.tensor).base
        return None if source is None else self._load(fused, source, place, check)

    def statistics(self, fused: Fused, place: Place, statistic: str) -> Iterator[Array]:
        """The models' blocks of a statistic; of a whole tensor, all of it."""
        low = METHODS[fused.plan.tensors[place.tensor].method or ""].statistics[statistic].low
        for source in fused.tensor(place.tensor).statistics[statistic]:
            values = self._load(fused, source, place, True, fused.block_shape(place, source))
            if low is not None and values.min(initial=low) < low:
                raise below(source, statistic, low, float(values.min()), place.start + int(values.argmin()))
            yield values

    def _load(
        self, fused: Fused, source: Source, place: Place, check: bool, shape: tuple[int, ...] | None = None
    ) -> Array:
        shape = fused.block_shape(place) if shape is None else shape
        raw = np.empty(math.prod(shape) * source.width, np.uint8)
        if len(raw):
            source.checkpoint.read_into(source.name, place.start * source.width, raw.data)
        wide = source.dtype == "F64" or fused.tensor(place.tensor).wide
        method = fused.plan.tensors[place.tensor].method
        if not wide and method is not None and _quick(METHODS[method], source.dtype):
            values: Array
            finite: bool
            values, finite = _kernel("mixing:widen")(raw.view(np.uint16))
        else:
            values = as_floats(raw, source.dtype, np.float64 if wide else np.float32)
            finite = not check or _finite(raw, source.dtype)
        if check and not finite:
            at = int((~np.isfinite(values)).argmax())
            raise FuseError(
                "a value is not finite",
                where=f"{source.checkpoint.where}: {source.name}",
                got=f"{values[at]} at element {place.start + at}",
                hint="leave this model out",
            )
        return values.reshape(shape)


class _Scan:
    """A scan over blocks, in the executor's threads."""

    def __init__(self, executor: CpuExecutor, fused: Fused, name: str, places: list[Place]) -> None:
        self._executor, self._fused, self._name, self._places = executor, fused, name, places

    def __call__(self, look: Look[T]) -> list[T]:
        executor, fused = self._executor, self._fused
        check = not fused.scanned(self._name)

        def at(place: Place) -> T:
            models = executor.models(fused, place, check)
            found = look(models, executor.base(fused, place, check), place)
            if check:
                for _ in models:  # those that were passed over too: the blocks are read unchecked later
                    pass
            return found

        found = map_each(at, self._places, executor.threads)
        fused.scanned(self._name, now=True)
        return found

    def of(self, statistic: str, look: Look[T]) -> list[T]:
        """See `StatisticsScan`."""
        executor, fused = self._executor, self._fused

        def at(place: Place) -> T:
            return look(executor.statistics(fused, place, statistic), None, place)

        return map_each(at, self._places, executor.threads)

    def products(self, *, with_base: bool) -> list[tuple[bool, str, list[float]]] | None:
        """See `QuickScan`."""
        executor, fused = self._executor, self._fused
        names = dict.fromkeys(place.tensor for place in self._places)
        tensors = {name: fused.tensor(name) for name in names}
        if not all(map(_alike, tensors.values())):
            return None
        jobs = [(name, piece) for name, tensor in tensors.items() for piece in _pieces(tensor, 0, tensor.numel)]
        products = _kernel("mixing:products")

        def at(job: tuple[str, tuple[int, int]]) -> tuple[bool, str, list[float]] | None:
            name, piece = job
            based = tensors[name].base is not None and not with_base
            ((_, rows),) = executor.stored(tensors[name], [piece])
            found = products(rows, based)
            return None if found is None else (based, name, found.tolist())

        found = [row for row in map_each(at, jobs, executor.threads) if row is not None]
        if not jobs or len(found) < len(jobs):
            return None  # the long way finds out what is not finite, and where
        fused.scanned(self._name, now=True)
        return found


def below(source: Source, statistic: str, low: float, got: float, at: int) -> FuseError:
    """What is said of a statistic that cannot be."""
    return FuseError(
        f"a value of a {statistic} is below {low:g}",
        where=f"{source.checkpoint.where}: {source.name}",
        got=f"{got} at element {at}",
        hint=f"this is no {statistic}: measure it again, or leave it out and the models' mean is taken",
    )


def _sources(tensor: Tensor) -> list[Source]:
    return [*([] if tensor.base is None else [tensor.base]), *tensor.models]


def _pieces(tensor: Tensor, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """A stretch of a tensor, cut so that however many the models are, no more than HELD bytes of them are held."""
    sources = _sources(tensor)
    step = max(1, HELD // (len(sources) * sources[0].width * WHOLE)) * WHOLE
    for first in range(start, stop, step):
        yield first, min(first + step, stop)


def _kind(tensor: Tensor) -> Any:
    return np.uint16 if tensor.spec.dtype == "BF16" else np.float32


def _alike(tensor: Tensor) -> bool:
    """Whether all that goes in and what comes out is stored in one dtype that the kernels know."""
    kind = tensor.spec.dtype
    return kind in {"BF16", "F32"} and all(source.dtype == kind for source in _sources(tensor))


def _quick(method: Method, code: str) -> bool:
    """Whether a block is made floats, and stored again, by a compiled pass: where the compiler has to start anyway."""
    return method.kernel is not None and code == "BF16"


def compiled(method: Method) -> Callable[..., Array]:
    """A method's kernel where it has one, else its function."""
    return method.function if method.kernel is None else _kernel(method.kernel)


@cache
def _kernel(path: str) -> Callable[..., Any]:
    # Imported when first used: the compiler takes a third of a second, which a mean of two models need not pay.
    module, _, function = path.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(f"...kernels.{module}", __name__), function)
    return found


def _finite(stored: npt.NDArray[np.uint8], code: str) -> bool:
    if code == "BF16":
        # Without the sign, infinity and NaN are the largest; half as many bytes to look at as a float32's.
        return int((stored.view(np.uint16) & np.uint16(0x7FFF)).max(initial=0)) < 0x7F80
    if code in {"F16", "F32", "F64"}:
        return bool(np.isfinite(stored.view(STORED[code])).all())
    return bool(np.isfinite(as_floats(stored, code, np.float32)).all())
