"""The verb that says which merge methods there are, and what each computes."""

from __future__ import annotations

import inspect
import json
from typing import Annotated, Any

import typer

from ..document import nearest
from ..errors import FuseError
from ..fuse import METHODS, Method, Parameter
from .weights import Json


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command()(methods)


def methods(
    name: Annotated[str | None, typer.Argument(metavar="METHOD", help="Say everything about this one.")] = None,
    as_json: Json = False,
) -> None:
    """Say which merge methods there are, or what one computes."""
    if name is not None and name not in METHODS:
        raise FuseError("unknown merge method", got=name, hint=nearest(name, METHODS))
    wanted = METHODS if name is None else {name: METHODS[name]}
    if as_json:
        typer.echo(json.dumps({key: _facts(method) for key, method in wanted.items()}, indent=2))
    elif name is None:
        width = max(map(len, METHODS))
        for key, method in METHODS.items():
            typer.echo(f"{key:<{width}}  {_text(method).splitlines()[0]}")
        typer.echo("\ncofuse methods METHOD says what it computes, from which paper, and its parameters.")
    else:
        typer.echo(_text(METHODS[name]))
        typer.echo("\nIn a recipe:")
        for line in _lines(METHODS[name]):
            typer.echo(f"  {line}")


def _text(method: Method) -> str:
    return inspect.getdoc(method.function) or ""


def _lines(method: Method) -> list[str]:
    least, most = method.models
    count = f"{least}" if most == least else f"{least} or more" if most is None else f"{least} to {most}"
    base = {True: "needed", False: "gives names and files only", None: "counts where there is one"}[method.needs_base]
    return [
        f"models: {count}",
        f"base_model: {base}",
        *(f"statistics: {{{name}: ADDRESS}} beside each model" for name in method.statistics),
        *(f"{n}: {_range(p)}" for n, p in method.parameters.items()),
    ]


def _range(parameter: Parameter) -> str:
    said = ["for each model"] if parameter.per_model else []
    said.append("required" if parameter.required else f"{json.dumps(parameter.default)} by default")
    if parameter.choices:
        said.append("one of " + ", ".join(parameter.choices))
    elif parameter.low is not None or parameter.high is not None:
        low = "" if parameter.low is None else f"from {parameter.low:g}"
        high = "" if parameter.high is None else f"to {parameter.high:g}"
        said.append(f"{low} {high}".strip())
    return ", ".join(said)


def _facts(method: Method) -> dict[str, Any]:
    return {
        "summary": _text(method).splitlines()[0],
        "unit": method.unit,
        "base": method.needs_base,
        "models": list(method.models),
        "statistics": list(method.statistics),
        "parameters": {
            name: {
                "default": None if p.required else p.default,
                "per_model": p.per_model,
                "low": p.low,
                "high": p.high,
                "choices": list(p.choices),
            }
            for name, p in method.parameters.items()
        },
    }
