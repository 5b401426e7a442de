"""YAML documents read into typed models, with errors that name the line and suggest the right word.

Recipes, tasks, suites and studies are all read here, so that a typo gives the same clear error in each.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from .errors import DocumentError

Keys = tuple[str | int, ...]


class Document(BaseModel):
    """Base of every model read from YAML: unknown keys are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=False)


D = TypeVar("D", bound=BaseModel)


def nearest(word: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    """A suggestion for a mistyped word: the nearest known one, else all of them.

    >>> nearest("wieght", ["weight", "density"])
    'did you mean "weight"?'
    >>> nearest("zzz", ["weight", "density"])
    'known: density, weight'
    """
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f'did you mean "{close[0]}"?' if close else "known: " + ", ".join(sorted(known))


def read_document(path: Path, model: type[D], changes: Mapping[str, Any] | None = None) -> D:
    """Read a YAML file into `model`.

    Args:
        path: the file.
        model: the pydantic model it must fit.
        changes: values to set before validation, by dotted key (`--set rounds=3`).

    Raises:
        DocumentError: the file cannot be read, is not YAML, or does not fit; it names line and key.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DocumentError("cannot read the file", where=path, got=error) from None
    return parse_document(text, model, where=str(path), changes=changes)


def parse_document(
    text: str, model: type[D], *, where: str = "document", changes: Mapping[str, Any] | None = None
) -> D:
    """Parse YAML text into `model`; see `read_document`."""
    try:
        node = yaml.compose(text, Loader=_Loader)
        data = yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        raise DocumentError("not valid YAML", where=f"{where}{line}", got=problem) from None
    except RecursionError:
        raise DocumentError("nested too deeply", where=where) from None
    if not isinstance(data, dict):
        raise DocumentError("a document is a mapping", where=where, got=type(data).__name__)
    lines = _lines(node) if node is not None else {}
    for key, value in (changes or {}).items():
        _set(data, key, value)
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise _explain(error, model, where, lines, data) from None


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, which YAML 1.1 loaders silently let the last one win."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if isinstance(key, str | int) and key in seen:
            raise yaml.constructor.ConstructorError(None, None, f'key "{key}" twice', key_node.start_mark)
        if isinstance(key, str | int):
            seen.add(key)
    loader.flatten_mapping(node)
    return dict(loader.construct_pairs(node, deep=True))


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)
# YAML 1.1 reads 5e-5 as a string; everybody means the number.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    __import__("re").compile(r"^[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def _lines(node: yaml.Node, keys: Keys = ()) -> dict[Keys, int]:
    """Line (from 1) of every key path in the document."""
    found = {keys: node.start_mark.line + 1}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            path = (*keys, key.value)
            found.update(_lines(value, path))
            found[path] = key.start_mark.line + 1
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            found.update(_lines(value, (*keys, i)))
    return found


def _set(data: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    place: Any = data
    for parent in parents:
        place = place[int(parent)] if isinstance(place, list) else place.setdefault(parent, {})
        if not isinstance(place, dict | list):
            raise DocumentError("cannot set a key inside a value", where=f"--set {dotted}", got=repr(place))
    if isinstance(place, list):
        place[int(last)] = value
    else:
        place[last] = value


def _explain(
    error: ValidationError, model: type[BaseModel], where: str, lines: dict[Keys, int], data: Any
) -> DocumentError:
    """The first problem of a validation, in our words."""
    problems = error.errors()
    # An unknown key explains the missing one that it was meant to be, so it goes first.
    problem = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    keys = tuple(k for k in problem["loc"] if _is_key(k, data, problem["loc"]))
    line = next((lines[keys[:n]] for n in range(len(keys), -1, -1) if keys[:n] in lines), None)
    place = where if line is None else f"{where}:{line}"
    dotted = ".".join(str(k) for k in keys) or "document"
    if problem["type"] == "extra_forbidden":
        known = _fields_at(model, keys[:-1])
        return DocumentError(
            f'unknown key "{keys[-1]}"',
            where=place,
            hint=nearest(str(keys[-1]), known) if known else None,
        )
    if problem["type"] == "missing":
        return DocumentError(f'missing key "{dotted}"', where=place)
    message = problem["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    got = problem.get("input")
    shown = None if isinstance(got, dict | list) else repr(got)
    return DocumentError(f'bad value of "{dotted}"', where=place, got=shown, expected=message)


def _is_key(key: str | int, data: Any, loc: Sequence[str | int]) -> bool:
    """Whether an element of pydantic's location is a key of the document and not a union's tag."""
    if isinstance(key, int):
        return True
    place: Any = data
    for k in loc:
        if k is key:
            return True if not isinstance(place, dict) else (key in place or k == loc[-1])
        if isinstance(place, dict) and k in place:
            place = place[k]
        elif isinstance(place, list) and isinstance(k, int) and k < len(place):
            place = place[k]
    return False


def _fields_at(model: type[BaseModel], keys: Keys) -> list[str]:
    """Names that may stand at a place of the document, as far as the model's fields say."""
    here: list[type[BaseModel]] = [model]
    for key in keys:
        below: list[type[BaseModel]] = []
        for m in here:
            field = m.model_fields.get(str(key)) if isinstance(key, str) else None
            if field is None and isinstance(key, str):
                field = next((f for f in m.model_fields.values() if f.alias == key), None)
            below += _models_in(field.annotation) if field is not None else []
        if isinstance(key, int):
            continue  # an element of a list: the annotation was already opened
        here = below or here
    return sorted({f.alias or name for m in here for name, f in m.model_fields.items()})


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for a in getattr(annotation, "__args__", ()) for m in _models_in(a)]
