"""What requests are read into and answers are put together from: JSON bodies, ids, pages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar

from fastapi import Path, Query
from pydantic import BaseModel, ConfigDict, Field

LARGEST = 2**31 - 1  # what a number of a row can be, in every database
Row = Annotated[int, Field(ge=1, le=LARGEST)]
Id = Annotated[int, Path(ge=1, le=LARGEST)]
Before = Annotated[int | None, Query(ge=1, le=LARGEST)]
After = Annotated[int, Query(ge=0, le=LARGEST)]
Limit = Annotated[int, Query(ge=1, le=200)]
Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
T = TypeVar("T")


class Body(BaseModel):
    """What a request's JSON is read into: unknown keys are errors, and so are values of other kinds: `false` is no 0."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)


def paged(
    name: str, found: Sequence[T], say: Callable[[T], dict[str, Any]], limit: int, by: str = "id"
) -> dict[str, Any]:
    """A page of rows; `next` is the `before` or `after` of the page that follows, None at the end."""
    return {name: [say(one) for one in found], "next": getattr(found[-1], by) if len(found) == limit else None}
