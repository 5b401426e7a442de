"""Models that share only a part, under names of their own."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import ConfigDict, Field

from ..checkpoint import Checkpoint
from ..document import Document


class Prefix(Document):
    """`prefix: {from: "model.", to: "language_model.model."}`; a model may have a list of them."""

    model_config = ConfigDict(populate_by_name=True)

    from_: str = Field(alias="from")
    to: str


def part_of(model: Checkpoint, whole: Checkpoint, prefixes: Sequence[Prefix] = (), *, partial: bool = False) -> Checkpoint:
    """The model under the names of `whole`; with `partial`, what it lacks is the whole's and what the whole lacks is left out."""
    raise NotImplementedError
