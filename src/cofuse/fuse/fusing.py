"""From a recipe and opened checkpoints to the fused checkpoint; lazy: nothing is read until the result is."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from ..checkpoint import Checkpoint, Hashed
from ..checkpoint.architecture import HEAD
from ..checkpoint.quantized import dequantized
from ..checkpoint.views import stacked_config
from ..document import Keys
from ..errors import FuseError
from .bound import check_bound, check_unread
from .chat import with_chat_template
from .execute import Executor
from .fused import Fused
from .methods import METHODS, SPELLINGS
from .partial import part_of
from .plan import Plan, make_plan
from .recipe import DTYPE_WORDS, Part, Recipe, Value, simple_recipe
from .slices import PlannedError
from .vocabulary import with_vocabulary


def fuse(
    method: str,
    models: Sequence[Checkpoint],
    *,
    base: Checkpoint | None = None,
    weights: Sequence[float] | None = None,
    statistics: Mapping[str, Sequence[Checkpoint | None]] | None = None,
    executor: Executor | None = None,
    **parameters: Value,
) -> Fused:
    """Fuse checkpoints by a method; lazy: nothing is read until the result is.

    Args:
        method: a row of `METHODS`.
        models: the tuned checkpoints.
        base: what they were tuned from; gives names, dtypes and files.
        weights: one for each model; 1 each when None.
        statistics: what the method wants to know of each model, by its name (`{"fisher": [...]}`), one checkpoint for each;
            None for a model without, whose tensors are averaged. Those of another model are refused, before the first
            value of the result at the latest; for that, a model whose content id is not known yet is read once more.
        executor: where blocks are computed; the processor when None.
        parameters: the method's hyperparameters (`lambda` is spelled `scale`).

    Raises:
        FuseError: the models do not fit together, a parameter is wrong, or statistics are another model's.

    >>> import torch
    >>> from cofuse.checkpoint import Memory
    >>> a, b = Memory({"x": torch.zeros(2)}), Memory({"x": torch.ones(2)})
    >>> fuse("linear", [a, b], weights=[1, 3]).read("x")
    tensor([0.7500, 0.7500])
    """
    known = METHODS[method].parameters if method in METHODS else {}
    words = {keyword: name for name, keyword in SPELLINGS.items() if name in known and keyword not in known}
    spelled = {words.get(name, name): value for name, value in parameters.items()}
    given = statistics or {}
    for name, measured in given.items():
        if len(measured) != len(models):
            raise FuseError("as many statistics as models", where=name, got=len(measured), expected=len(models))
    recipe = simple_recipe(
        method,
        len(models),
        base=base is not None,
        parameters=spelled,
        weights=None if weights is None else tuple(float(w) for w in weights),
        statistics=[
            {name: f"{name} of {i}" for name in given if given[name][i] is not None} for i in range(len(models))
        ],
    )
    opened = {str(i): model for i, model in enumerate(models)} | ({} if base is None else {"base": base})
    measures = {f"{name} of {i}": one for name in given for i, one in enumerate(given[name]) if one is not None}
    plan = make_plan(recipe, {**opened, **measures}, lead=None if base is None else len(models))
    plan = replace(plan, notes=(*plan.notes, *check_bound(recipe, opened, measures)))
    checkpoints = [{**opened, **measures}[key] for key in plan.inputs]
    return Fused(plan, checkpoints, executor, before=check_unread(recipe, opened, measures))


def fuse_recipe(recipe: Recipe, opened: Mapping[str, Checkpoint], executor: Executor | None = None) -> Fused:
    """Fuse by a recipe; recipes inside it are fused on the fly.

    Args:
        recipe: what to do.
        opened: a checkpoint for each of `recipe.addresses`. Statistics of another model are refused: of those that are
            `Hashed` by `recorded`, after they were read; others are read once more, before the first value of the result.
        executor: where blocks are computed; the processor when None.

    Raises:
        FuseError: see `make_plan`.

    >>> import torch
    >>> from cofuse.checkpoint import Memory
    >>> models = {name: Memory({"x": torch.full((2,), value)}) for name, value in (("a", 0.0), ("b", 4.0))}
    >>> inner = {"merge_method": "linear", "models": [{"model": "a"}, {"model": "b"}]}
    >>> outer = {"merge_method": "linear", "models": [{"model": inner}, {"model": "b"}]}
    >>> fuse_recipe(Recipe.model_validate(outer), models).read("x")
    tensor([3., 3.])
    """
    missing = [address for address in recipe.addresses if address not in opened]
    if missing:
        raise FuseError("a model of the recipe is not opened", got=missing[0])
    models = {part.key: dequantized(_opened(part, opened, executor)) for part in recipe.parts}
    base = recipe.base_key
    leader = base or recipe.parts[0].key
    for part in recipe.parts:
        if part.prefix or part.partial:
            if part.key == leader:
                raise PlannedError(
                    "the model that gives the names is whole",
                    where=part.key,
                    hint="set base_model to the model that has everything, or list it first",
                ).at(part.place)
            with _placed(part.place):
                models[part.key] = part_of(models[part.key], models[leader], part.prefix, partial=part.partial)
    settings = recipe.tokenizer_settings
    others = {a: opened[a] for a in (settings.addresses if settings else ()) if a not in models}
    with _placed(("tokenizer" if recipe.tokenizer else "tokenizer_source",) if settings else ()):
        models = with_vocabulary(settings, models, leader=leader, base=base, others=others)
    with _placed(("chat_template",)):
        models = with_chat_template(recipe.chat_template, models, leader=leader)
    statistics = {a: opened[a] for _, given in recipe.given() for a in given.statistics.values()}
    notes = check_bound(recipe, opened, statistics)
    unwatched = {address: one for address, one in opened.items() if not isinstance(one, Hashed)}
    before = check_unread(recipe, unwatched, statistics)
    statistics = {a: _as_its_model(recipe, a, one) for a, one in statistics.items()}
    plan = make_plan(recipe, {**models, **statistics})
    plan = replace(plan, notes=(*plan.notes, *notes))
    checkpoints = [{**models, **statistics}[key] for key in plan.inputs]
    return Fused(plan, checkpoints, executor, _files(plan, checkpoints), before=before)


@contextmanager
def _placed(keys: Keys) -> Iterator[None]:
    """Refusals, with the place in the recipe that they are about."""
    try:
        yield
    except PlannedError:
        raise
    except FuseError as error:
        raise PlannedError(error.what, where=error.where, got=error.got, expected=error.expected, hint=error.hint).at(
            keys
        ) from error


def _opened(part: Part, opened: Mapping[str, Checkpoint], executor: Executor | None) -> Checkpoint:
    if isinstance(part.model, str):
        return opened[part.model]
    try:
        return fuse_recipe(part.model, opened, executor)
    except PlannedError as error:
        raise error.at((*part.place, *error.keys)) from None


def _as_its_model(recipe: Recipe, address: str, measured: Checkpoint) -> Checkpoint:
    """A model's statistics under the names that the recipe gives the model's tensors."""
    whose = next(given for _, given in recipe.given() if address in given.statistics.values())
    return part_of(measured, measured, whose.prefix) if whose.prefix else measured


def _files(plan: Plan, checkpoints: Sequence[Checkpoint]) -> Mapping[str, bytes]:
    """The leader's files, its config made to fit: how many layers, which dtype, whether the head is tied."""
    leader = checkpoints[plan.leader]
    config: dict[str, Any] = dict(leader.config)
    if not config:
        return leader.files
    if plan.layers:
        config = stacked_config(leader, [(checkpoints[i], number) for i, number in plan.layers])
    word = plan.recipe.out_dtype or plan.recipe.dtype
    if word in DTYPE_WORDS:
        named = [key for key in ("dtype", "torch_dtype") if key in config]
        config.update(dict.fromkeys(named or ["torch_dtype"], word))
    if config.get("tie_word_embeddings") and any(HEAD.search(name) and name not in leader for name in plan.tensors):
        config["tie_word_embeddings"] = False  # or the head that stands in the file would be passed over
    if config == leader.config:
        return leader.files
    return {**leader.files, "config.json": json.dumps(config, indent=2).encode() + b"\n"}
