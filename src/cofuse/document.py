"""YAML documents read into typed models, with errors that name the line and suggest the right word.

Recipes, tasks, suites and studies are all read here, so that a typo gives the same clear error in each.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from .errors import DocumentError

Keys = tuple[str | int, ...]

# A document with its aliases written out: a few lines of aliases to aliases would fill any memory.
MAX_NODES = 100_000

# What PyYAML raises for text that is none: `!!bool x` is a KeyError, `!!int ""` an IndexError, a date of month 13 a ValueError.
NOT_YAML = (yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError, RecursionError)


class Document(BaseModel):
    """Base of every model read from YAML: unknown keys are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=False, allow_inf_nan=False)


class PlacedError(ValueError):
    """A key or value refused by a validator of the model above it: says which, so that the error names its line."""

    def __init__(self, keys: Keys, expected: str, got: object = None, *, known: Sequence[str] | None = None) -> None:
        super().__init__(expected)
        self.keys = keys
        self.got = got
        self.known = known  # the keys that may stand there, when the key itself is wrong


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


def read_value(text: str) -> Any:
    """One YAML value by the rules of documents, as `--set` takes it.

    Raises:
        YAMLError: it is not YAML.

    >>> read_value("5e-5"), read_value("[1, a]")
    (5e-05, [1, 'a'])
    """
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError:
        raise
    except NOT_YAML as error:
        raise yaml.YAMLError(f"not a value: {error}") from None


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
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        data, lines = None, {}
        if node is not None:
            _count(node, {})
            lines = _lines(node)  # before merge keys are flattened, which rewrites the nodes
            data = loader.construct_document(node)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        raise DocumentError("not valid YAML", where=f"{where}{line}", got=problem) from None
    except RecursionError:
        raise DocumentError("nested too deeply", where=where) from None
    except NOT_YAML as error:
        raise DocumentError("not valid YAML", where=where, got=error) from None
    finally:
        if loader is not None:
            loader.dispose()
    if not isinstance(data, dict):
        raise DocumentError("a document is a mapping", where=where, got=type(data).__name__)
    for key, value in (changes or {}).items():
        data = _set(data, key.split("."), value, f"--set {key}")
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise _explain(error, model, where, lines, data) from None


def line_of(path: Path, keys: Keys) -> int | None:
    """The line (from 1) of a key in a document that was read before, or of the nearest key around it; None for no file."""
    try:
        node = yaml.compose(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None
    lines = {} if node is None else _lines(node)
    return next((lines[keys[:n]] for n in range(len(keys), -1, -1) if keys[:n] in lines), None)


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, which YAML 1.1 loaders silently let the last one win."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":
            continue
        if not isinstance(key_node, yaml.ScalarNode):
            raise yaml.constructor.ConstructorError(None, None, "a key is a word", key_node.start_mark)
        key = loader.construct_object(key_node, deep=True)
        if key in seen:
            raise yaml.constructor.ConstructorError(None, None, f'key "{key}" twice', key_node.start_mark)
        seen.add(key)
    loader.flatten_mapping(node)
    return dict(loader.construct_pairs(node, deep=True))


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)
# YAML 1.1 reads 5e-5 as a string; everybody means the number.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def _count(node: yaml.Node, known: dict[int, int]) -> int:
    """Nodes of a document when every alias is written out; refused above `MAX_NODES`."""
    if id(node) in known:
        if not known[id(node)]:
            raise yaml.composer.ComposerError(None, None, "an alias inside what it names", node.start_mark)
        return known[id(node)]
    known[id(node)] = 0  # it is being counted
    below: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        below = [part for pair in node.value for part in pair]
    elif isinstance(node, yaml.SequenceNode):
        below = node.value
    count = 1
    for part in below:
        count += _count(part, known)
        if count > MAX_NODES:
            raise yaml.composer.ComposerError(
                None, None, f"more than {MAX_NODES:,} values, aliases written out", node.start_mark
            )
    known[id(node)] = count
    return count


def _lines(node: yaml.Node, keys: Keys = ()) -> dict[Keys, int]:
    """Line (from 1) of every key path in the document."""
    found = {keys: node.start_mark.line + 1}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            numbered = key.tag == "tag:yaml.org,2002:int" and key.value.isdigit()
            path = (*keys, int(key.value) if numbered else key.value)
            found.update(_lines(value, path))
            found[path] = key.start_mark.line + 1
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            found.update(_lines(value, (*keys, i)))
    return found


def _set(place: Any, keys: Sequence[str], value: Any, where: str) -> Any:
    """A copy of a place with a value set below it; what aliases share with it stays as it is."""
    if not keys:
        return value
    key, *rest = keys
    if not key:
        raise DocumentError("an empty key", where=where)
    if isinstance(place, list):
        if not (key.isascii() and key.isdigit() and int(key) < len(place)):
            raise DocumentError(
                "no such element of a list",
                where=where,
                got=key,
                expected=f"0 to {len(place) - 1}" if place else "none",
            )
        copy: Any = list(place)
        copy[int(key)] = _set(place[int(key)], rest, value, where)
        return copy
    if not isinstance(place, dict):
        raise DocumentError("cannot set a key inside a value", where=where, got=repr(place))
    # Keys that YAML reads as numbers (rounds of a study) are numbers here too.
    own = int(key) if key not in place and key.isascii() and key.isdigit() and int(key) in place else key
    return {**place, own: _set(place.get(own, {} if rest else None), rest, value, where)}


def _explain(
    error: ValidationError, model: type[BaseModel], where: str, lines: dict[Keys, int], data: Any
) -> DocumentError:
    """The first problem of a validation, in our words."""
    problems = error.errors()
    # An unknown key explains the missing one that it was meant to be, so it goes first. Of a union's branches, the one
    # that fits furthest down is the one that was meant.
    problem = next((p for p in problems if p["type"] == "extra_forbidden"), max(problems, key=_depth))
    keys = _keys(problem["loc"], data, ends_in_key=problem["type"] in ("missing", "extra_forbidden"))
    context = problem.get("ctx", {})
    cause = context.get("error")
    unknown: Sequence[str] | None = None
    if problem["type"] == "extra_forbidden":
        unknown = _fields_at(model, keys[:-1])
    elif isinstance(cause, PlacedError):
        keys = (*keys, *cause.keys)
        unknown = cause.known
    line = next((lines[keys[:n]] for n in range(len(keys), -1, -1) if keys[:n] in lines), None)
    place = where if line is None else f"{where}:{line}"
    dotted = ".".join(str(k) for k in keys) or "document"
    if unknown is not None:
        hint = nearest(str(keys[-1]), unknown) if unknown else None
        return DocumentError(f'unknown key "{keys[-1]}"', where=place, hint=hint)
    if problem["type"] == "missing":
        return DocumentError(f'missing key "{dotted}"', where=place)
    if isinstance(cause, PlacedError):
        return DocumentError(
            f'bad value of "{dotted}"', where=place, got=None if cause.got is None else repr(cause.got), expected=cause
        )
    # A union says why each of its branches does not fit.
    reasons = dict.fromkeys(p["msg"] for p in problems if _keys(p["loc"], data) == keys)
    message = " or ".join(r.removeprefix("Value error, ").removeprefix("Input should be ") for r in reasons)
    got = problem.get("input")
    words = re.findall(r"'([^']*)'", str(context.get("expected_tags", context.get("expected", ""))))
    word = context.get("tag", got)
    return DocumentError(
        f'bad value of "{dotted}"',
        where=place,
        got=None if isinstance(got, dict | list) else repr(got),
        expected=message,
        hint=nearest(str(word), words) if words else None,
    )


def _depth(problem: Any) -> int:
    cause = problem.get("ctx", {}).get("error")
    return len(problem["loc"]) + (len(cause.keys) if isinstance(cause, PlacedError) else 0)


def _keys(loc: Sequence[str | int], data: Any, *, ends_in_key: bool = False) -> Keys:
    """The keys of the document in pydantic's location, which also holds the tags of unions.

    A location that ends in a key which the document lacks (a missing one) says so.
    """
    keys: list[str | int] = []
    place = data
    for i, key in enumerate(loc):
        if isinstance(place, dict) and key in place:
            place = place[key]
        elif isinstance(place, list | tuple) and isinstance(key, int) and key < len(place):
            place = place[key]
        elif not (ends_in_key and i == len(loc) - 1):
            continue
        keys.append(key)
    return tuple(keys)


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
