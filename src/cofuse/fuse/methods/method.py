"""What a merge method is: a pure function on blocks, with what must be known before it can start.

Blocks are arrays: numpy's on the processor, torch's on a GPU. A method is written once for both, with operators and the
functions of their common namespace (`array_api_compat.array_namespace`); where numpy leaves a factor on the table a row
names a compiled kernel that does the same, and the function stays as the test's twin.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, Protocol, TypeAlias, TypeVar, runtime_checkable

import numpy as np
import numpy.typing as npt

# Typed as numpy's; a GPU's executor hands torch tensors to the same functions.
Array: TypeAlias = npt.NDArray[np.floating[Any]]
T = TypeVar("T")

Unit = Literal["block", "row", "tensor"]
Scope = Literal["tensor", "model"]
Scalar: TypeAlias = bool | int | float | str


@dataclass(frozen=True, slots=True)
class Parameter:
    """A hyperparameter: its default, whether each model has its own, and what values it takes.

    Attributes:
        default: also says the type: bool, int, float or str.
        per_model: each model may have its own value.
        low, high: the range, ends included.
        choices: the words that a str may be.
        required: there is no default that anybody could mean; `default` only says the type.
    """

    default: Scalar
    per_model: bool = False
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    required: bool = False


@dataclass(frozen=True, slots=True)
class Place:
    """Where a block lies, which is what random masks and ties at a threshold are keyed by.

    Attributes:
        tensor: its name in the result.
        shape: of the whole tensor.
        index: which block of the tensor it is; every tensor is always cut in the same way.
        start: the first element, counted over the flattened tensor.
        seed: the recipe's.
    """

    tensor: str = ""
    shape: tuple[int, ...] = ()
    index: int = 0
    start: int = 0
    seed: int = 0


# What a survey does with one block: the models' blocks, the base's, where it lies.
Look: TypeAlias = Callable[[Iterable[Array], Array | None, Place], T]


class Scan(Protocol):
    """Goes once over every block of the tensor (or model) and gives what was found, in the order of the blocks."""

    def __call__(self, look: Look[T]) -> list[T]:
        """Blocks are looked at side by side; `look` must be pure."""


class StatisticsScan(Scan, Protocol):
    """A scan that goes over the models' statistics too."""

    def of(self, statistic: str, look: Look[T]) -> list[T]:
        """As a scan, with the blocks of one statistic in the models' place; without a base."""


@runtime_checkable
class QuickScan(Scan, Protocol):
    """A scan that has a shorter way to inner products."""

    def products(self, *, with_base: bool) -> list[tuple[bool, str, list[float]]] | None:
        """What `gram.gram` finds in every block; None where there is no shorter way."""


def as_its_tensor(shape: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """The shape of a statistic that has a number for each of a tensor's."""
    return (shape,)


@dataclass(frozen=True, slots=True)
class Statistic:
    """What a method wants to know of each model besides its weights: a checkpoint with the model's names.

    Attributes:
        shapes: the shapes that it may have for a tensor of the given one; none where such a tensor has no such statistic.
        low: no value of it is smaller; None where there is no such bound.
    """

    shapes: Callable[[tuple[int, ...]], tuple[tuple[int, ...], ...]] = as_its_tensor
    low: float | None = None


@dataclass(frozen=True, slots=True)
class Method:
    """A row of the table.

    Attributes:
        function: `function(models, base, *, parameters...)` gives the fused block. `models` is an iterable that reads each
            model's block when it is asked for, so a mean holds one at a time however many models there are. Blocks come in
            float32 (float64 for float64 inputs), are the function's own to overwrite, and the result is cast by the executor.
        unit: how a tensor is cut for the function: `block`, any stretch of the flattened tensor; `row`, whole rows, as
            [rows, elements] (a vector is one row); `tensor`, the whole in its own shape.
        needs_base: whether `base` is given (True), never (False), or when the recipe has one (None).
        parameters: by their names in a recipe.
        survey: `survey(scan, *, parameters...)` finds what must be known of the whole before any block: thresholds,
            inner products. Its result goes to `function` as `known`.
        scope: what a survey goes over: one tensor, or all that the method fuses.
        weightless: the survey finds the same whatever the models' weights are, so fuses that differ in them share it.
        placed: the function also takes `place`, the block's Place.
        models: how many it takes, least and most (the base not counted).
        kernel: "module:function" below `fuse.kernels`, compiled, with the function's signature.
        mix: `mix(count, *, ...)` with the function's keyword arguments gives the coefficients of the base (where there is
            one) and of the `count` models when the result is a linear combination of them; None when it is not. Such
            blocks are combined as they are stored, in one compiled pass, where that pays.
        check: `check(count, *, parameters...)` refuses, with a FuseError, parameters that do not fit together or that do not
            fit so many models; called when the plan is made.
        statistics: what each model brings besides its weights (a Fisher diagonal, a Gram matrix), by name. The function
            takes an argument of that name: an iterable of the models' blocks of it, cut as `models` are, or whole and in
            their own shape where the unit is a tensor. A tensor of which a model has none is not this method's: the
            models' mean, by their `weight`, is taken, and the plan says so.
    """

    function: Callable[..., Array]
    unit: Unit
    needs_base: bool | None
    parameters: Mapping[str, Parameter] = field(default_factory=lambda: MappingProxyType({}))
    survey: Callable[..., Any] | None = None
    scope: Scope = "tensor"
    weightless: bool = False
    placed: bool = False
    models: tuple[int, int | None] = (1, None)
    kernel: str | None = None
    mix: Callable[..., Sequence[float] | None] | None = None
    check: Callable[..., None] | None = None
    statistics: Mapping[str, Statistic] = field(default_factory=lambda: MappingProxyType({}))
