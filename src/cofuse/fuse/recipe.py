"""A recipe: what to fuse and how, as written. mergekit's YAML for `models` works as it stands."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, StrictBool, StrictFloat, StrictInt, StrictStr, ValidationError, field_validator, model_validator

from ..document import Document, Keys, PlacedError, nearest, read_document
from ..errors import FuseError
from .methods import METHODS, Parameter

Value = StrictBool | StrictInt | StrictFloat | StrictStr  # "0.5" in quotes is a mistake, not a number


class ModelInput(Document):
    """One model of a recipe: its address and its own parameters."""

    model: str
    parameters: dict[str, Value] = Field(default_factory=dict)


class Recipe(Document):
    """What to fuse and how."""

    merge_method: str
    models: tuple[ModelInput, ...] = Field(min_length=1)
    base_model: str | None = None
    parameters: dict[str, Value] = Field(default_factory=dict)
    dtype: str | None = None
    out_dtype: str | None = None
    seed: int = 0

    @field_validator("merge_method")
    @classmethod
    def _known_method(cls, method: str) -> str:
        if method not in METHODS:
            raise ValueError(f"a merge method; {nearest(method, METHODS)}")
        return method

    @field_validator("dtype", "out_dtype")
    @classmethod
    def _known_dtype(cls, dtype: str | None) -> str | None:
        if dtype is not None and dtype not in DTYPE_WORDS:
            raise ValueError(f"a dtype; {nearest(dtype, DTYPE_WORDS)}")
        return dtype

    @model_validator(mode="after")
    def _fits_the_method(self) -> Recipe:
        method = METHODS[self.merge_method]
        given: list[tuple[Keys, Mapping[str, Value]]] = [(("parameters",), self.parameters)]
        given += [(("models", i, "parameters"), model.parameters) for i, model in enumerate(self.models)]
        for keys, parameters in given:
            for name, value in parameters.items():
                try:
                    check_parameter(name, value, method.parameters, per_model=len(keys) > 1)
                except ValueError as error:
                    known = tuple(method.parameters) if name not in method.parameters else None
                    raise PlacedError((*keys, name), str(error), value, known=known) from None
        if method.needs_base and self.base_model is None:
            raise ValueError(f'"base_model" for {self.merge_method}')
        return self

    @property
    def addresses(self) -> tuple[str, ...]:
        """Every address the recipe names, the base first, each once."""
        named = ([self.base_model] if self.base_model else []) + [m.model for m in self.models]
        return tuple(dict.fromkeys(named))

    @property
    def id(self) -> str:
        """SHA-256 of the recipe's canonical JSON."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


DTYPE_WORDS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64"}


def check_parameter(name: str, value: Value, known: Mapping[str, Parameter], *, per_model: bool) -> None:
    """Refuse a parameter that the method lacks, or a value outside its range.

    Raises:
        ValueError: says what is allowed, for pydantic to place.
    """
    parameter = known.get(name)
    if parameter is None:
        raise ValueError(f'no parameter "{name}"; {nearest(name, known)}')
    if per_model and not parameter.per_model:
        raise ValueError(f'"{name}" belongs to the whole recipe, not to one model')
    if isinstance(parameter.default, bool):
        if not isinstance(value, bool):
            raise ValueError(f'"{name}" is true or false, not {value!r}')
        return
    if isinstance(value, bool):
        raise ValueError(f'"{name}" is a number, not {value!r}')
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f'"{name}" is finite, not {value!r}')
    if (parameter.low is not None and number < parameter.low) or (
        parameter.high is not None and number > parameter.high
    ):
        raise ValueError(f'"{name}" lies between {parameter.low} and {parameter.high}, not {value!r}')


def read_recipe(path: Path, changes: Mapping[str, Any] | None = None) -> Recipe:
    """Read and check a recipe.

    Raises:
        DocumentError: with the line of the file and a suggestion.
    """
    return read_document(path, Recipe, changes)


def simple_recipe(
    method: str, models: int, *, base: bool, parameters: Mapping[str, Value], weights: tuple[float, ...] | None = None
) -> Recipe:
    """The recipe of a fuse asked for in Python; models are named by their place.

    Raises:
        FuseError: the method or a parameter is unknown.
    """
    if method not in METHODS:
        raise FuseError("unknown merge method", got=method, hint=nearest(method, METHODS))
    if weights is not None and len(weights) != models:
        raise FuseError("as many weights as models", where=method, got=len(weights), expected=models)
    try:
        own = [{} if weights is None else {"weight": weights[i]} for i in range(models)]
        return Recipe(
            merge_method=method,
            models=tuple(ModelInput(model=str(i), parameters=row) for i, row in enumerate(own)),
            base_model="base" if base else None,
            parameters=dict(parameters),
        )
    except ValidationError as error:
        said = str(error.errors()[-1]["msg"]).removeprefix("Value error, ")
        raise FuseError("cannot fuse so", where=method, expected=said) from None
