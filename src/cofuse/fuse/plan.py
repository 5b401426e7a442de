"""recipe -> plan: what will happen to each tensor, decided before a byte is read. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..checkpoint import Checkpoint, TensorSpec
from ..checkpoint.dtypes import FLOATING
from ..errors import FuseError
from .floats import FLOATS
from .methods import METHODS
from .recipe import DTYPE_WORDS, Recipe, Value

# Floats whose values mean something only with a scale that stands elsewhere, or that nobody computes with.
REFUSED = frozenset({*FLOATING, "C64"} - FLOATS)
# Weights whose sum is smaller than this share of the largest one cancel; dividing by it would make noise a model.
CANCELLED = 1e-6


@dataclass(frozen=True, slots=True)
class Input:
    """A tensor that goes into the fuse: which of the opened checkpoints has it, under which name."""

    checkpoint: int
    name: str


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """One tensor of the result.

    `method` is None for what is copied from the one input: integers and buffers are never averaged. Parameters that
    each model has for itself are tuples, in the order of the inputs.
    """

    name: str
    spec: TensorSpec
    method: str | None
    inputs: tuple[Input, ...]
    base: Input | None = None
    parameters: Mapping[str, Value | tuple[Value, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Plan:
    """A recipe resolved against the models' names and shapes."""

    recipe: Recipe
    tensors: Mapping[str, TensorPlan]
    leader: int  # which checkpoint gives files, metadata and tied names
    bytes_read: int
    bytes_written: int


def make_plan(recipe: Recipe, models: Sequence[Checkpoint], base: Checkpoint | None) -> Plan:
    """Resolve a recipe.

    Args:
        recipe: what to do.
        models: the opened models, in the recipe's order.
        base: the opened base, which also gives names, dtypes and files; the first model does when None.

    Raises:
        FuseError: a tensor is missing, or has another shape; it names the model and the tensor.
    """
    method = METHODS[recipe.merge_method]
    if len(models) != len(recipe.models):
        raise FuseError("models and recipe disagree", got=len(models), expected=len(recipe.models))
    if method.needs_base and base is None:
        raise FuseError("the method needs a base", where=recipe.merge_method)
    leader = base if base is not None else models[0]
    parameters: dict[str, Value | tuple[Value, ...]] = {}
    for name, parameter in method.parameters.items():
        common = recipe.parameters.get(name, parameter.default)
        if parameter.per_model:
            # A base listed among the models has no task vector: as in mergekit, it counts for nothing.
            own = [m.model != recipe.base_model or not method.needs_base for m in recipe.models]
            values = [float(m.parameters.get(name, common)) for m in recipe.models]
            parameters[name] = tuple(v if counts else 0.0 for v, counts in zip(values, own, strict=True))
        else:
            parameters[name] = common
    weights = _floats(parameters.get("weight", (1.0,)))
    if parameters.get("normalize") and abs(math.fsum(weights)) <= CANCELLED * max(map(abs, weights)):
        raise FuseError(
            "the weights sum to zero", where=recipe.merge_method, hint="set normalize: false, or other weights"
        )
    out_dtype = DTYPE_WORDS.get(recipe.out_dtype or recipe.dtype or "")
    tensors: dict[str, TensorPlan] = {}
    read = written = 0
    # What the leader ties stays tied, unless a model has it apart.
    apart = (a for a, kept in leader.aliases.items() if any(a in m and m.resolve(a) != m.resolve(kept) for m in models))
    for name in (*leader.names(), *apart):
        spec = leader.spec(name)
        if spec.dtype in REFUSED:
            raise FuseError(
                "a tensor of this dtype cannot be averaged",
                where=f"{leader.where}: {name}",
                got=spec.dtype,
                expected=", ".join(sorted(FLOATS)),
                hint="dequantise the models first",
            )
        for model in models:
            _check_same(model, name, spec)
        fused = spec.dtype in FLOATS
        out = TensorSpec(out_dtype, spec.shape) if fused and out_dtype else spec
        inputs = tuple(Input(i, name) for i in range(len(models)))
        if fused:
            own = Input(len(models), name) if method.needs_base else None
            tensors[name] = TensorPlan(name, out, recipe.merge_method, inputs, own, parameters)
            read += sum(m.spec(name).nbytes for m in (*models, *([base] if own and base is not None else [])))
        else:
            place = len(models) if base is not None else 0
            tensors[name] = TensorPlan(name, out, None, (Input(place, name),))
            read += spec.nbytes
        written += out.nbytes
    for model in models:
        extra = [n for n in model.names() if n not in leader]
        if extra:
            raise FuseError(
                "a model has tensors that the base lacks",
                where=model.where,
                got=", ".join(extra[:3]) + (f" and {len(extra) - 3} more" if len(extra) > 3 else ""),
                hint="take its body first: cofuse body TUNED OUT --like BASE",
            )
    return Plan(recipe, tensors, len(models) if base is not None else 0, read, written)


def _floats(value: Value | tuple[Value, ...]) -> tuple[float, ...]:
    return tuple(map(float, value if isinstance(value, tuple) else (value,)))


def _check_same(model: Checkpoint, name: str, spec: TensorSpec) -> None:
    if name not in model:
        raise FuseError(
            "a tensor is missing", where=model.where, got=f"no {name}", hint="do the models come from one base?"
        )
    got = model.spec(name)
    if got.shape != spec.shape:
        raise FuseError(
            "a tensor has another shape", where=f"{model.where}: {name}", got=list(got.shape), expected=list(spec.shape)
        )
    if (got.dtype in FLOATS) != (spec.dtype in FLOATS):
        raise FuseError(
            "a tensor has another kind of dtype", where=f"{model.where}: {name}", got=got.dtype, expected=spec.dtype
        )
