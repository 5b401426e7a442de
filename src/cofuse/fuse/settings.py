"""The value of a parameter as a recipe writes it: a scalar, a gradient over the layers, or rules by the tensor's name.

    weight: 0.5                                     everywhere
    weight: [0, 0.5, 1]                             interpolated from the first layer to the last
    weight: [{filter: mlp, value: [0, 1]}, 0.3]     the first rule whose filter fits the tensor's name

As in mergekit, where `t` runs from 0 at the first layer of a slice to 1 at its last, and is 0 outside the layers. Ours
are globs among the filters, and a bare value as a last rule.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

from pydantic import StrictBool, StrictFloat, StrictInt, StrictStr

from ..document import Document, Keys, PlacedError, nearest
from .methods import Parameter

Value = StrictBool | StrictInt | StrictFloat | StrictStr
Scalar: TypeAlias = bool | int | float | str

# YAML 1.1 reads 1e-3 as text, and people put numbers into quotes; both mean the number, as in mergekit.
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?", re.ASCII)
_TRUTH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


class Rule(Document):
    """A value for the tensors whose names a filter fits; for all of them without one."""

    value: Value | tuple[Value, ...]
    filter: str | None = None

    def fits(self, name: str) -> bool:
        """Whether a tensor of this name is meant.

        >>> Rule(filter="mlp", value=1).fits("layers.0.mlp.up"), Rule(filter="*.up", value=1).fits("layers.0.mlp.up")
        (True, True)
        """
        if self.filter is None:
            return True
        if any(c in self.filter for c in "*?["):
            return fnmatchcase(name, self.filter)
        return bool(name) and self.filter in name


Setting: TypeAlias = Scalar | tuple[Scalar, ...] | tuple[Rule, ...]


def read_settings(given: object) -> dict[str, Setting]:
    """A recipe's `parameters`, each in its one form.

    Raises:
        PlacedError: something is no parameter's value; it says which.
    """
    if given is None:  # "parameters:" with nothing behind it
        return {}
    if not isinstance(given, Mapping):
        raise PlacedError((), "a mapping of parameters", given)
    for name in given:
        if not isinstance(name, str):
            raise PlacedError((name,), "a parameter's name", name)
    return {name: read_setting(value, (name,)) for name, value in given.items()}


def read_setting(given: object, keys: Keys = ()) -> Setting:
    """One parameter's value in its one form.

    >>> read_setting([0, "1e-3"]), read_setting([{"filter": "mlp", "value": 1}, 0.5])
    ((0, 0.001), (Rule(value=1, filter='mlp'), Rule(value=0.5, filter=None)))
    """
    if isinstance(given, Rule | Mapping):
        return (_read_rule(given, keys),)
    if isinstance(given, list | tuple):
        if any(isinstance(item, Rule | Mapping) for item in given):
            return tuple(_read_rule(item, (*keys, i)) for i, item in enumerate(given))
        return tuple(_read_scalar(item, (*keys, i)) for i, item in enumerate(given))
    return _read_scalar(given, keys)


def _read_rule(given: object, keys: Keys) -> Rule:
    if isinstance(given, Rule):
        return given
    if not isinstance(given, Mapping):
        return Rule(value=_read_scalar(given, keys))
    for key in given:
        if key not in Rule.model_fields:
            raise PlacedError((*keys, key), "value and filter", key, known=tuple(Rule.model_fields))
    if "value" not in given:
        raise PlacedError(keys, 'a "value" beside the filter', dict(given))
    pattern = given.get("filter")
    if not (pattern is None or isinstance(pattern, str)):
        raise PlacedError((*keys, "filter"), "a part of a tensor's name, or a glob", pattern)
    value = given["value"]
    if isinstance(value, list | tuple):
        return Rule(value=tuple(_read_scalar(v, (*keys, "value", i)) for i, v in enumerate(value)), filter=pattern)
    return Rule(value=_read_scalar(value, (*keys, "value")), filter=pattern)


def _read_scalar(given: object, keys: Keys) -> Scalar:
    if isinstance(given, str):
        return float(given) if _NUMBER.fullmatch(given) else given
    if isinstance(given, float) and not math.isfinite(given):
        raise PlacedError(keys, "a finite number", given)
    if isinstance(given, bool | int | float):
        return given
    raise PlacedError(keys, "a number, a word, true or false, or a list of them", given)


def plain_settings(settings: Mapping[str, Setting]) -> dict[str, Any]:
    """Settings as plain data, which `read_settings` reads back.

    >>> plain_settings(read_settings({"weight": [{"filter": "mlp", "value": [0, 1]}, 0.5]}))
    {'weight': [{'value': [0, 1], 'filter': 'mlp'}, {'value': 0.5}]}
    """
    return {name: _plain(setting) for name, setting in settings.items()}


def _plain(setting: Setting | Rule) -> Any:
    if isinstance(setting, tuple):
        return [_plain(item) for item in setting]
    if isinstance(setting, Rule):
        own = {} if setting.filter is None else {"filter": setting.filter}
        return {"value": _plain(setting.value), **own}
    return setting


def check_setting(name: str, setting: Setting, parameter: Parameter) -> None:
    """Refuse what the parameter cannot be.

    Raises:
        PlacedError: says which part of the setting, below the parameter's name.
    """
    for keys, value in _scalars(setting):
        try:
            as_kind(name, value, parameter)
        except ValueError as error:
            raise PlacedError(keys, str(error), value) from None


def _scalars(setting: Setting) -> list[tuple[Keys, Scalar]]:
    if not isinstance(setting, tuple):
        return [((), setting)]
    found: list[tuple[Keys, Scalar]] = []
    for i, item in enumerate(setting):
        if not isinstance(item, Rule):
            found.append(((i,), item))
        elif isinstance(item.value, tuple):
            found += [((i, "value", j), value) for j, value in enumerate(item.value)]
        else:
            found.append(((i, "value"), item.value))
    return found


def as_kind(name: str, value: Scalar, parameter: Parameter) -> Scalar:
    """A value as the parameter's kind.

    Raises:
        ValueError: says what is allowed.

    >>> as_kind("density", 1, Parameter(0.5)), as_kind("normalize", 1.0, Parameter(False))
    (1.0, True)
    """
    default = parameter.default
    if isinstance(default, bool):
        truth = _TRUTH.get(value.lower()) if isinstance(value, str) else value
        if truth in (0, 1) and truth is not None:
            return bool(truth)
        raise ValueError(f'"{name}" is true or false, not {value!r}')
    if isinstance(default, str):
        word = str(value)
        if parameter.choices and word not in parameter.choices:
            raise ValueError(f'"{name}" is one of {", ".join(parameter.choices)}; {nearest(word, parameter.choices)}')
        return word
    if isinstance(value, bool | str):
        raise ValueError(f'"{name}" is a number, not {value!r}')
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f'"{name}" is finite, not {value!r}')
    low, high = parameter.low, parameter.high
    if (low is not None and number < low) or (high is not None and number > high):
        if low is not None and high is not None:
            raise ValueError(f'"{name}" lies between {low} and {high}, not {value!r}')
        raise ValueError(f'"{name}" is at {f"least {low}" if low is not None else f"most {high}"}, not {value!r}')
    if isinstance(default, int):
        if number != int(number):
            raise ValueError(f'"{name}" is a whole number, not {value!r}')
        return int(number)
    return number


def value_at(name: str, setting: Setting, parameter: Parameter, tensor: str, t: float) -> Scalar | None:
    """What a setting says for one tensor; None where none of its rules fits.

    Numbers of a gradient are interpolated; of words and truths the one that stands at t is taken.

    >>> value_at("t", (0, 0.5, 1), Parameter(0.5), "layers.3.mlp", 0.25)
    0.25
    """
    if not isinstance(setting, tuple):
        return as_kind(name, setting, parameter)
    if not setting:
        return None
    scalars: list[Scalar] = []
    for item in setting:
        if not isinstance(item, Rule):
            scalars.append(as_kind(name, item, parameter))
        elif item.fits(tensor):
            return value_at(name, item.value, parameter, tensor, t)
    if not scalars:
        return None
    numbers = [v for v in scalars if not isinstance(v, bool | str)]
    if len(numbers) < len(scalars):
        return scalars[int(t * (len(scalars) - 1))]
    scaled = t * (len(numbers) - 1)
    low = int(scaled)
    high = min(len(numbers) - 1, low + 1)
    share = scaled - low
    # (1 - s) a + s b, in mergekit's order of operations: the same number to the last bit.
    return as_kind(name, (1 - share) * numbers[low] + share * numbers[high], parameter)


def check_parameter(name: str, value: Setting, known: Mapping[str, Parameter], *, per_model: bool) -> None:
    """Refuse a parameter that the method lacks, or a value outside its range.

    Raises:
        ValueError: says what is allowed, for pydantic to place.
    """
    parameter = known.get(name)
    if parameter is None:
        raise ValueError(f'no parameter "{name}"; {nearest(name, known)}')
    if per_model and not parameter.per_model:
        raise ValueError(f'"{name}" belongs to the whole recipe, not to one model')
    check_setting(name, value, parameter)
