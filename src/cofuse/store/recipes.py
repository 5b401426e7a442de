"""The recipe of a merge: how what both sides changed is fused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from ..document import nearest
from ..errors import FuseError
from ..fuse import METHODS, ModelInput, Recipe, fuse_recipe
from .merging import Fuse

SIDES = ("ours", "theirs")
# Methods to which the order of the models means something, so that it is always ours, then theirs.
_IN_ORDER = frozenset({"ema", "nuslerp"})


def fusing(recipe: Recipe) -> Fuse:
    """Fuses what both sides changed by a recipe of the models `ours` and `theirs`, and the base `base`."""
    return lambda base, ours, theirs: fuse_recipe(recipe, {"base": base, "ours": ours, "theirs": theirs})


def recipe_for(method: str, settings: Mapping[str, Any], seed: int, *, ours: str, theirs: str) -> Recipe:
    """The recipe by which what both sides changed is fused: of the models `ours` and `theirs`, and the base `base`.

    Where nothing tells the sides apart the models are in the order of their trees' ids, so that merging either one into the
    other gives the same bytes.

    Args:
        method: a row of `METHODS`.
        settings: its parameters; those of one side are called `ours.weight`, `theirs.weight`.
        seed: of random masks.
        ours: the id of our tree.
        theirs: of theirs.

    Raises:
        FuseError: the method or a parameter is unknown, or the method does not take two models.

    >>> recipe_for("ties", {"density": 0.5}, 0, ours="b", theirs="a").canonical
    {'merge_method': 'ties', 'models': [{'model': 'theirs'}, {'model': 'ours'}], 'base_model': 'base', 'parameters': {'density': 0.5}}
    """
    if method not in METHODS:
        raise FuseError("unknown merge method", got=method, hint=nearest(method, METHODS))
    if METHODS[method].statistics:
        raise FuseError(
            "the method wants statistics, which a version has not",
            where=method,
            got=", ".join(METHODS[method].statistics),
            hint="fuse by a recipe that names them, and commit the result",
        )
    known = METHODS[method].parameters
    own: dict[str, dict[str, Any]] = {"": {}, **{side: {} for side in SIDES}}
    try:
        for key, value in settings.items():
            side, _, name = key.rpartition(".")
            if side not in own:
                raise ValueError(f"{key}: only {' and '.join(SIDES)} have settings of their own")
            if name not in known:
                raise ValueError(f'no parameter "{name}"; {nearest(name, known)}')
            own[side][name] = value
        turned = method not in _IN_ORDER and theirs < ours
        order = SIDES if not turned or own["ours"] != own["theirs"] else tuple(reversed(SIDES))
        return Recipe(
            merge_method=method,
            models=tuple(ModelInput(model=side, parameters=own[side]) for side in order),
            base_model="base" if METHODS[method].needs_base is not False else None,
            parameters=own[""],
            seed=seed,
        )
    except ValidationError as error:
        said = str(error.errors()[-1]["msg"]).removeprefix("Value error, ")
        raise FuseError("cannot merge two sides so", where=method, expected=said) from None
    except ValueError as error:
        raise FuseError("cannot merge two sides so", where=method, expected=str(error)) from None
