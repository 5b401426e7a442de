"""Blocks computed on the processor: numpy, and compiled kernels where a method names one."""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from ...checkpoint import map_each
from ...checkpoint.floats import STORED, as_floats, as_stored
from ...errors import FuseError
from ..methods import METHODS, Array, Look, Method, Place, keyword_arguments

if TYPE_CHECKING:
    from ..fused import Fused, Source

T = TypeVar("T")

# Tensors of more elements that a method takes whole are computed one at a time, whatever the number of threads.
LARGE = 1 << 24


class CpuExecutor:
    """Computes each block in the thread that asks for it; surveys in threads of its own."""

    def __init__(self, threads: int | None = None) -> None:
        self.threads = threads or os.cpu_count() or 1

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
        models, base = self._models(fused, place, check), self._base(fused, place, check)
        result = compiled(method)(models, base, **arguments)
        stored = as_stored(result, plan.spec.dtype)
        if not _finite(stored, plan.spec.dtype):
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

        def scan(look: Look[T]) -> list[T]:
            check = not fused.scanned(name)

            def at(place: Place) -> T:
                models = self._models(fused, place, check)
                found = look(models, self._base(fused, place, check), place)
                if check:
                    for _ in models:  # those that were passed over too: the blocks are read unchecked later
                        pass
                return found

            found = map_each(at, places, self.threads)
            fused.scanned(name, now=True)
            return found

        return method.survey(scan, **keyword_arguments(plan.parameters))

    def _models(self, fused: Fused, place: Place, check: bool) -> Iterator[Array]:
        for source in fused.tensor(place.tensor).models:
            yield self._load(fused, source, place, check)

    def _base(self, fused: Fused, place: Place, check: bool) -> Array | None:
        source = fused.tensor(place.tensor).base
        return None if source is None else self._load(fused, source, place, check)

    def _load(self, fused: Fused, source: Source, place: Place, check: bool) -> Array:
        shape = fused.block_shape(place)
        raw = np.empty(math.prod(shape) * source.width, np.uint8)
        if len(raw):
            source.checkpoint.read_into(source.name, place.start * source.width, raw.data)
        values = as_floats(raw, source.dtype, np.float64 if fused.tensor(place.tensor).wide else np.float32)
        if check and not _finite(raw, source.dtype):
            at = int((~np.isfinite(values)).argmax())
            raise FuseError(
                "a value is not finite",
                where=f"{source.checkpoint.where}: {source.name}",
                got=f"{values[at]} at element {place.start + at}",
                hint="leave this model out",
            )
        return values.reshape(shape)


def compiled(method: Method) -> Callable[..., Array]:
    """A method's kernel where it has one, else its function."""
    return method.function if method.kernel is None else _kernel(method.kernel)


@cache
def _kernel(path: str) -> Callable[..., Array]:
    # Imported when first used: the compiler takes a third of a second, which a mean of two models need not pay.
    module, _, function = path.partition(":")
    found: Callable[..., Array] = getattr(importlib.import_module(f"...kernels.{module}", __name__), function)
    return found


def _finite(stored: npt.NDArray[np.uint8], code: str) -> bool:
    if code == "BF16":
        # Without the sign, infinity and NaN are the largest; half as many bytes to look at as a float32's.
        return int((stored.view(np.uint16) & np.uint16(0x7FFF)).max(initial=0)) < 0x7F80
    if code in {"F16", "F32", "F64"}:
        return bool(np.isfinite(stored.view(STORED[code])).all())
    return bool(np.isfinite(as_floats(stored, code, np.float32)).all())
