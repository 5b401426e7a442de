"""What the OpenAPI document says of all routes alike: how a refusal looks, and how a token is shown."""

from __future__ import annotations

import inspect
import re
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from .. import faults
from .streams import Cut


class Refusal(BaseModel):
    """Why something was not done: what is wrong, where, what came, what was expected, and what to do."""

    error: str
    where: str | None = None
    got: str | None = None
    expected: str | None = None
    hint: str | None = None


KINDS: tuple[type[faults.Fault], ...] = (
    faults.Invalid,
    faults.Unauthenticated,
    faults.Denied,
    faults.Unknown,
    Cut,
    faults.Conflict,
    faults.TooLarge,
    faults.Refused,
    faults.TooOften,
    faults.Unavailable,
    faults.Full,
)
# Any of them may come from any route.
REFUSALS: dict[int | str, dict[str, Any]] = {
    # A `model` would be described in each route's own media type.
    kind.status: {
        "description": inspect.getdoc(kind),
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Refusal"}}},
    }
    for kind in KINDS
}


class Described(FastAPI):
    """An application whose document names the refusals, and the token, which may be left out where everybody may read."""

    def __init__(self, **said: Any) -> None:
        super().__init__(responses=REFUSALS, **said)

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is not None:
            return self.openapi_schema
        document = super().openapi()
        document["components"]["schemas"]["Refusal"] = Refusal.model_json_schema()
        document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{}, {"token": []}]
        for path, operations in document["paths"].items():
            for operation in operations.values():
                operation.setdefault("parameters", []).extend(_left_out(path, operation))
        return document


def _left_out(path: str, operation: dict[str, Any]) -> list[dict[str, Any]]:
    """What a path names and no function takes: they read it from the path as it came."""
    known = {one["name"] for one in operation["parameters"]}
    names = [name for name in re.findall(r"{(\w+)}", path) if name not in known]
    return [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names]
