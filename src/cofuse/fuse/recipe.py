"""A recipe: what to fuse and how, as written. mergekit's YAML works as it stands."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    BeforeValidator,
    Field,
    PlainSerializer,
    PlainValidator,
    StrictBool,
    StrictInt,
    ValidationError,
    field_validator,
    model_validator,
)

from ..document import Document, Keys, PlacedError, nearest, read_document
from ..errors import FuseError
from .methods import METHODS, Method
from .partial import Prefix
from .settings import Setting, Value, check_parameter, check_setting, plain_settings, read_settings
from .vocabulary import TokenizerSettings

__all__ = ["DTYPE_WORDS", "ModelInput", "Recipe", "Slice", "SliceSource", "Value", "check_parameter", "read_recipe"]

DTYPE_WORDS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64"}
# Methods without a base to which a base beside the models is one more model, as in mergekit. To the others it only gives
# names and files.
COUNT_THE_BASE = frozenset({"linear", "karcher"})

Parameters = Annotated[Mapping[str, Setting], PlainValidator(read_settings), PlainSerializer(plain_settings)]
# "prefix: {...}" is a list of one.
Prefixes = Annotated[tuple[Prefix, ...], BeforeValidator(lambda v: (v,) if isinstance(v, Mapping | Prefix) else v)]


class ModelInput(Document):
    """One model of a recipe: its address, or a recipe that makes it, and what is its own.

    Attributes:
        model: an address, or a recipe of its own, which is fused on the fly.
        parameters: go before the recipe's.
        statistics: addresses of what a method wants to know of the model besides its weights, by the method's names.
        prefix: its names where they differ from the base's.
        partial: it has only a part of the base's tensors; the base's are kept for the rest.
    """

    model: str | Recipe
    parameters: Parameters = Field(default_factory=dict)
    statistics: dict[str, str] = Field(default_factory=dict)
    prefix: Prefixes = ()
    partial: StrictBool = False

    @property
    def key(self) -> str:
        """What names the model among the opened ones."""
        return key_of(self.model)


class SliceSource(ModelInput):
    """A model's layers of a slice: from the first number to the second, which is not included."""

    layer_range: tuple[StrictInt, StrictInt]

    @field_validator("layer_range")
    @classmethod
    def _runs_upwards(cls, value: tuple[int, int]) -> tuple[int, int]:
        if not 0 <= value[0] < value[1]:
            raise ValueError("a first layer and, above it, the one behind the last: [0, 8] are eight layers")
        return value


class Slice(Document):
    """Some layers of the result: the layers of one model, or of several, fused."""

    sources: tuple[SliceSource, ...] = Field(min_length=1)
    base_model: str | Recipe | None = None
    parameters: Parameters = Field(default_factory=dict)

    @model_validator(mode="after")
    def _equally_long(self) -> Slice:
        first = self.sources[0].layer_range
        for i, source in enumerate(self.sources):
            start, stop = source.layer_range
            if stop - start != first[1] - first[0]:
                raise PlacedError(("sources", i, "layer_range"), f"as many layers as {list(first)} has", [start, stop])
        return self


@dataclass(frozen=True, slots=True)
class Part:
    """A model that a recipe needs opened: what names it, what it is, and where the recipe says so."""

    key: str
    model: str | Recipe
    place: Keys
    prefix: tuple[Prefix, ...] = ()
    partial: bool = False


class Recipe(Document):
    """What to fuse and how."""

    merge_method: str
    models: tuple[ModelInput, ...] = ()
    slices: tuple[Slice, ...] = ()
    modules: Any = None
    base_model: str | Recipe | None = None
    parameters: Parameters = Field(default_factory=dict)
    dtype: str | None = None
    out_dtype: str | None = None
    tokenizer_source: str | None = None
    tokenizer: TokenizerSettings | None = None
    chat_template: str | None = None
    seed: StrictInt = 0

    def __hash__(self) -> int:
        return hash(self.id)

    @field_validator("merge_method")
    @classmethod
    def _known_method(cls, method: str) -> str:
        if method not in METHODS:
            raise ValueError(f"a merge method; {nearest(method, METHODS)}")
        return method

    @field_validator("dtype", "out_dtype")
    @classmethod
    def _known_dtype(cls, dtype: str | None) -> str | None:
        dtype = dtype.removeprefix("torch.") if dtype is not None else None
        if dtype is not None and dtype not in DTYPE_WORDS:
            raise ValueError(f"a dtype; {nearest(dtype, DTYPE_WORDS)}")
        return dtype

    @model_validator(mode="after")
    def _is_whole(self) -> Recipe:
        if self.modules is not None:
            raise PlacedError(
                ("modules",),
                "models or slices: a model's towers are fused together here, with filters for what is to be theirs alone",
                "modules",
            )
        if bool(self.models) == bool(self.slices):
            raise PlacedError(("models",), 'a list of "models", or of "slices", and not both', None)
        if self.tokenizer is not None and self.tokenizer_source is not None:
            raise PlacedError(("tokenizer_source",), 'one of "tokenizer" and "tokenizer_source"', self.tokenizer_source)
        self._check_parameters()
        self._check_statistics()
        self._check_inputs()
        return self

    def _check_parameters(self) -> None:
        known = self.method.parameters
        for keys, parameters, per_model in self._scopes():
            for name, setting in parameters.items():
                if name not in known:
                    if name not in _every_parameter():
                        raise PlacedError((*keys, name), "", setting, known=tuple(known))
                    continue
                if per_model and not known[name].per_model:
                    what = "slice" if self.slices else "recipe"
                    raise PlacedError((*keys, name), f'"{name}" belongs to the whole {what}, not to one model')
                try:
                    check_setting(name, setting, known[name])
                except PlacedError as error:
                    raise PlacedError((*keys, name, *error.keys), str(error), error.got) from None
        missing = [
            name
            for name, parameter in known.items()
            if parameter.required and not any(name in parameters for _, parameters, _ in self._scopes())
        ]
        if missing:
            raise PlacedError(("parameters",), f'"{missing[0]}", which {self.merge_method} needs', None)

    def _scopes(self) -> Iterator[tuple[Keys, Mapping[str, Setting], bool]]:
        """Every mapping of parameters, where it stands, and whether it is one model's."""
        yield ("parameters",), self.parameters, False
        for i, part in enumerate(self.slices):
            yield ("slices", i, "parameters"), part.parameters, False
        for keys, given in self.given():
            yield (*keys, "parameters"), given.parameters, True

    def given(self) -> Iterator[tuple[Keys, ModelInput]]:
        """Every place where a model stands, and what stands there."""
        for i, model in enumerate(self.models):
            yield ("models", i), model
        for i, part in enumerate(self.slices):
            for j, source in enumerate(part.sources):
                yield ("slices", i, "sources", j), source

    def _check_statistics(self) -> None:
        for keys, given in self.given():
            for name in given.statistics:
                if name not in self.method.statistics:
                    wanted = ", ".join(self.method.statistics)
                    said = f"only {wanted}" if wanted else f"none: {self.merge_method} takes no statistics"
                    raise PlacedError((*keys, "statistics", name), said, name)
        # A model without them is averaged with the others, which the plan says; when none has any, they were forgotten.
        for name in self.method.statistics:
            if not any(name in given.statistics for _, given in self.given()):
                raise PlacedError((*keys, "statistics"), f'"{name}", which {self.merge_method} needs', None)

    def _check_inputs(self) -> None:
        method, name = self.method, self.merge_method
        groups: list[tuple[Keys, Sequence[ModelInput], str | None]] = [
            (("slices", i, "sources"), part.sources, self.base_of(part)) for i, part in enumerate(self.slices)
        ] or [(("models",), self.models, self.base_key)]
        for keys, given, base in groups:
            if method.needs_base and base is None:
                raise ValueError(f'"base_model" for {name}')
            seen: set[object] = set()
            for i, one in enumerate(given):
                same = (one.key, one.layer_range if isinstance(one, SliceSource) else None)
                if same in seen:
                    raise PlacedError((*keys, i, "model"), "each model once; give it a larger weight", one.key)
                seen.add(same)
            among = base is not None and any(one.key == base for one in given)
            if self.slices and base is not None and not among and method.needs_base is not False:
                raise PlacedError(keys, f"the base among the sources, with its layers: {base}", None)
            count = len(given) - (1 if among and method.needs_base is not False else 0)
            if self.models and base is not None and not among and name in COUNT_THE_BASE:
                count += 1
                if "weight" in method.parameters and "weight" not in self.parameters:
                    raise PlacedError(
                        ("base_model",),
                        f"a model of the list, with its weight: {name} counts the base as one more model, as mergekit"
                        " does (leave base_model out if it is none)",
                        base,
                    )
            least, most = method.models
            if count < least or (most is not None and count > most):
                wanted = f"{least}" if least == most else f"at least {least}" if most is None else f"{least} to {most}"
                beside = " besides the base" if method.needs_base is not False and base is not None else ""
                raise PlacedError(keys, f"{wanted} model{'s' if wanted != '1' else ''}{beside} for {name}", count)
        for part in self.parts:  # one address under one set of names
            for keys, other in self.given():
                if other.key == part.key and (other.prefix, other.partial) != (part.prefix, part.partial):
                    raise PlacedError((*keys, "prefix"), "the same prefix and partial wherever the model stands", None)

    @property
    def method(self) -> Method:
        """The method's row."""
        return METHODS[self.merge_method]

    @property
    def base_key(self) -> str | None:
        """What names the base, None without one."""
        return None if self.base_model is None else key_of(self.base_model)

    def base_of(self, part: Slice) -> str | None:
        """What names a slice's base."""
        return self.base_key if part.base_model is None else key_of(part.base_model)

    @property
    def parts(self) -> tuple[Part, ...]:
        """Every model that must be opened, each once: in the order of the recipe, the base last when it stands apart."""
        found: dict[str, Part] = {}
        for keys, given in self.given():
            found.setdefault(given.key, Part(given.key, given.model, (*keys, "model"), given.prefix, given.partial))
        for i, part in enumerate(self.slices):
            if part.base_model is not None:
                key = key_of(part.base_model)
                found.setdefault(key, Part(key, part.base_model, ("slices", i, "base_model")))
        if self.base_model is not None:
            key = key_of(self.base_model)
            found.setdefault(key, Part(key, self.base_model, ("base_model",)))
        return tuple(found.values())

    @property
    def tokenizer_settings(self) -> TokenizerSettings | None:
        """What is to be done about vocabularies, None where the recipe says nothing."""
        return TokenizerSettings(source=self.tokenizer_source) if self.tokenizer_source else self.tokenizer

    @property
    def addresses(self) -> tuple[str, ...]:
        """Every address that the recipe and those in it name, the base first, each once."""
        named = [p.model for p in self.parts]
        if self.base_model is not None:
            named.insert(0, self.base_model)
        found: list[str] = []
        for model in named:
            found += [model] if isinstance(model, str) else model.addresses
        for _, given in self.given():
            found += given.statistics.values()
        if self.tokenizer_settings is not None:
            found += self.tokenizer_settings.addresses
        return tuple(dict.fromkeys(found))

    @property
    def idle(self) -> tuple[str, ...]:
        """Parameters that stand in the recipe but belong to other methods: mergekit passes over them, and so do we."""
        given = (name for _, parameters, _ in self._scopes() for name in parameters)
        return tuple(dict.fromkeys(name for name in given if name not in self.method.parameters))

    @property
    def canonical(self) -> dict[str, Any]:
        """The recipe as plain data, without what is left at its default; reads back as the same recipe."""
        return self.model_dump(mode="json", by_alias=True, exclude_defaults=True)

    @property
    def id(self) -> str:
        """SHA-256 of the recipe's canonical JSON."""
        text = json.dumps(self.canonical, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def _every_parameter() -> frozenset[str]:
    return frozenset(name for method in METHODS.values() for name in method.parameters)


def key_of(model: str | Recipe) -> str:
    """What names a model among the opened ones: its address, or the id of the recipe that makes it."""
    return model if isinstance(model, str) else f"recipe {model.id[:16]}"


def read_recipe(path: Path, changes: Mapping[str, Any] | None = None) -> Recipe:
    """Read and check a recipe.

    Raises:
        DocumentError: with the line of the file and a suggestion.
    """
    return read_document(path, Recipe, changes)


def simple_recipe(
    method: str,
    models: int,
    *,
    base: bool,
    parameters: Mapping[str, Value],
    weights: tuple[float, ...] | None = None,
    statistics: Sequence[Mapping[str, str]] = (),
) -> Recipe:
    """The recipe of a fuse asked for in Python; models are named by their place, the base is "base".

    `statistics` are what each model's are called, by the method's names.

    Raises:
        FuseError: the method or a parameter is unknown.
    """
    if method not in METHODS:
        raise FuseError("unknown merge method", got=method, hint=nearest(method, METHODS))
    if weights is not None and len(weights) != models:
        raise FuseError("as many weights as models", where=method, got=len(weights), expected=models)
    row = METHODS[method]
    try:
        for name, value in parameters.items():
            check_parameter(name, value, row.parameters, per_model=False)
        own = [{} if weights is None else {"weight": weights[i]} for i in range(models)]
        return Recipe(
            merge_method=method,
            models=tuple(
                ModelInput(model=str(i), parameters=given, statistics=dict(statistics[i]) if statistics else {})
                for i, given in enumerate(own)
            ),
            base_model="base" if base and row.needs_base is not False else None,
            parameters=dict(parameters),
        )
    except ValidationError as error:
        first = error.errors()[-1]
        said = str(first["msg"]).removeprefix("Value error, ")
        raise FuseError("cannot fuse so", where=method, expected=said) from None
    except ValueError as error:
        raise FuseError("cannot fuse so", where=method, expected=str(error)) from None
