"""Blocks computed on the processor: numpy, and compiled kernels where a method names one."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from ...checkpoint import Checkpoint, map_each
from ...checkpoint.dtypes import bits
from ...errors import FuseError
from ..floats import STORED, as_floats, as_stored
from ..methods import METHODS, Array, Look, Method, Place, keyword_arguments

if TYPE_CHECKING:
    from ..fused import Fused

T = TypeVar("T")


class CpuExecutor:
    """Computes each block in the thread that asks for it; surveys in threads of its own."""

    def __init__(self, threads: int | None = None) -> None:
        self.threads = threads or os.cpu_count() or 1

    def block(self, fused: Fused, name: str, index: int) -> npt.NDArray[np.uint8]:
        """The stored bytes of one block of a fused tensor."""
        plan = fused.plan.tensors[name]
        assert plan.method is not None  # copied tensors never come here
        method = METHODS[plan.method]
        place = fused.place(name, index)
        arguments: dict[str, Any] = keyword_arguments(plan.parameters)
        if method.survey is not None:
            arguments["known"] = fused.known(name)
        if method.placed:
            arguments["place"] = place
        result = compiled(method)(self._models(fused, place), self._base(fused, place), **arguments)
        stored = as_stored(result, plan.spec.dtype)
        if not _stays_finite(stored, plan.spec.dtype):
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
            return map_each(
                lambda place: look(self._models(fused, place), self._base(fused, place), place), places, self.threads
            )

        return method.survey(scan, **keyword_arguments(plan.parameters))

    def _models(self, fused: Fused, place: Place) -> Iterator[Array]:
        for checkpoint, name in fused.inputs(place.tensor):
            yield self._load(fused, checkpoint, name, place)

    def _base(self, fused: Fused, place: Place) -> Array | None:
        source = fused.base_input(place.tensor)
        return None if source is None else self._load(fused, *source, place)

    def _load(self, fused: Fused, checkpoint: Checkpoint, name: str, place: Place) -> Array:
        code = checkpoint.spec(name).dtype
        shape = fused.block_shape(place)
        width = bits(code) // 8
        count = int(np.prod(shape, dtype=np.int64))
        raw = np.empty(count * width, np.uint8)
        if count:
            checkpoint.read_into(name, place.start * width, raw.data)
        values = as_floats(raw, code, np.float64 if fused.wide(place.tensor) else np.float32)
        if not np.isfinite(values).all():
            raise FuseError(
                "a value is not finite",
                where=f"{checkpoint.where}: {name}",
                got=f"{values[~np.isfinite(values)][0]} at element {place.start + int((~np.isfinite(values)).argmax())}",
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


def _stays_finite(stored: npt.NDArray[np.uint8], code: str) -> bool:
    if code == "BF16":
        return not ((stored.view(np.uint16) & np.uint16(0x7F80)) == 0x7F80).any()
    if code in {"F16", "F32", "F64"}:
        return bool(np.isfinite(stored.view(STORED[code])).all())
    return bool(np.isfinite(as_floats(stored, code, np.float32)).all())
