"""The result of a fuse: a checkpoint like any other, computed as it is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ..checkpoint import BLOCK_BYTES, Checkpoint, TensorSpec
from ..checkpoint.dtypes import bits
from .execute import CpuExecutor, Executor
from .methods import METHODS, Method
from .plan import Plan, make_plan
from .recipe import Recipe, Value, simple_recipe

# Several buffers of this many bytes are alive in each thread. They should fit the processor's cache, and be small enough
# for malloc to hand the same memory out again instead of asking the system for new pages each time.
BLOCK = 1024 * 1024


class Fused(Checkpoint):
    """Several checkpoints made one by a plan; each block is computed when it is read."""

    def __init__(
        self, plan: Plan, models: Sequence[Checkpoint], base: Checkpoint | None, executor: Executor | None = None
    ) -> None:
        self.plan = plan
        self.models = tuple(models)
        self.base = base
        self._leader = base if base is not None else models[0]
        self._executor = executor or CpuExecutor()
        self._aliases = {a: kept for a, kept in self._leader.aliases.items() if a not in plan.tensors}

    def names(self) -> tuple[str, ...]:
        return tuple(self.plan.tensors)

    def spec(self, name: str) -> TensorSpec:
        tensor = self.plan.tensors.get(self.resolve(name))
        if tensor is None:
            raise self.missing(name)
        return tensor.spec

    def blocks(self, name: str, size: int = BLOCK_BYTES) -> Iterator[tuple[int, int]]:
        method = self._method(name)
        if method is not None and method.unit != "block":
            yield 0, self.spec(name).nbytes
        else:
            yield from super().blocks(name, min(size, BLOCK))

    def read_bytes(self, name: str, start: int = 0, stop: int | None = None) -> bytes | bytearray:
        name = self.resolve(name)
        start, stop = self.check_range(name, start, stop)
        method = self._method(name)
        if method is None:
            return self._leader.read_bytes(name, start, stop)
        if start == stop:
            return b""
        spec = self.spec(name)
        width = bits(spec.dtype) // 8
        if method.unit != "block":
            return self._executor.block(self, name, 0, spec.numel)[start:stop]
        first, last = start // width, -(-stop // width)
        data = self._executor.block(self, name, first, last)
        return data[start - first * width : stop - first * width]

    def _method(self, name: str) -> Method | None:
        method = self.plan.tensors[self.resolve(name)].method
        return None if method is None else METHODS[method]

    @property
    def files(self) -> Mapping[str, bytes]:
        return self._leader.files

    @property
    def metadata(self) -> Mapping[str, str]:
        return {k: v for k, v in self._leader.metadata.items() if k not in self.aliases}

    @property
    def where(self) -> str:
        return f"{self.plan.recipe.merge_method} of {len(self.models)} models"


def fuse(
    method: str,
    models: Sequence[Checkpoint],
    *,
    base: Checkpoint | None = None,
    weights: Sequence[float] | None = None,
    executor: Executor | None = None,
    **parameters: Value,
) -> Fused:
    """Fuse checkpoints by a method; lazy: nothing is read until the result is.

    Args:
        method: a row of `METHODS`.
        models: the tuned checkpoints.
        base: what they were tuned from; gives names, dtypes and files.
        weights: one for each model; 1 each when None.
        executor: where blocks are computed; the processor when None.
        parameters: the method's hyperparameters (`lambda` is spelled `scale`).

    Raises:
        FuseError: the models do not fit together, or a parameter is wrong.

    >>> import torch
    >>> from cofuse.checkpoint import Memory
    >>> a, b = Memory({"x": torch.zeros(2)}), Memory({"x": torch.ones(2)})
    >>> fuse("linear", [a, b], weights=[1, 3]).read("x")
    tensor([0.7500, 0.7500])
    """
    spelled = {("lambda" if name == "scale" else name): value for name, value in parameters.items()}
    recipe = simple_recipe(
        method,
        len(models),
        base=base is not None,
        parameters=spelled,
        weights=None if weights is None else tuple(float(w) for w in weights),
    )
    return fuse_recipe(recipe, models, base, executor)


def fuse_recipe(
    recipe: Recipe, models: Sequence[Checkpoint], base: Checkpoint | None, executor: Executor | None = None
) -> Fused:
    """Fuse by a recipe whose models are already opened, in its order.

    Raises:
        FuseError: see `make_plan`.
    """
    return Fused(make_plan(recipe, models, base), models, base, executor)
