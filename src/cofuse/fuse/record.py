"""The record that a fused checkpoint carries in `cofuse.json`: what made it, so that it can be made again.

Written down in docs/formats/record.md. A record holds no times, and no paths but the addresses as the recipe wrote
them: the same fuse gives the same record.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from pydantic import Field, ValidationError

from .._version import __version__
from ..checkpoint import Checkpoint, Hashed, content_id, content_id_of, file_id
from ..document import Document
from ..errors import FuseError
from .bound import refuse_unbound
from .card import CARD, card
from .recipe import Recipe

RECORD = "cofuse.json"
_ID = Field(pattern=r"^[0-9a-f]{64}$")


class InputRecord(Document):
    """A checkpoint that went in.

    Attributes:
        address: as the recipe wrote it.
        content: its content id; None when no tensor of it was read (a base that gives only names and files).
    """

    address: str
    content: str | None = _ID


class OutputRecord(Document):
    """What came out: the content id, and the ids of the small files, but for the record and the model card."""

    content: str = _ID
    tensors: int
    files: dict[str, str]


class Record(Document):
    """What made a checkpoint.

    Attributes:
        record: the format's number.
        recipe: the recipe, canonical.
        seed: the recipe's, its default written out.
        versions: of what decides the last bit: cofuse and numpy.
        device: where blocks were computed.
        inputs: in the order of the recipe's addresses.
        output: what it gave.
    """

    record: Literal[1] = 1
    recipe: dict[str, Any]
    seed: int
    versions: dict[str, str]
    device: str = "cpu"
    inputs: tuple[InputRecord, ...]
    output: OutputRecord

    def encode(self) -> bytes:
        """Canonical JSON and a line feed: keys sorted, two spaces a level, ASCII."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, indent=2, ensure_ascii=True, allow_nan=False)
        return text.encode() + b"\n"

    def read_recipe(self) -> Recipe:
        """The recipe, checked as one from a file is.

        Raises:
            FuseError: this version of cofuse does not know it.
        """
        try:
            return Recipe.model_validate(self.recipe)
        except ValidationError as error:
            raise FuseError(
                "the recorded recipe cannot be read",
                where=RECORD,
                got=error.errors()[0]["msg"],
                hint=f"it was written by cofuse {self.versions.get('cofuse', 'of another version')}",
            ) from None


def versions() -> dict[str, str]:
    """The versions that a record names."""
    return {"cofuse": __version__, "numpy": np.__version__}


def input_record(address: str, checkpoint: Hashed) -> InputRecord:
    """What a record says of an input after it was read; what was not read of it, if anything was, is read now."""
    return InputRecord(address=address, content=content_id(checkpoint) if checkpoint.used() else None)


def recorded(
    recipe: Recipe,
    inputs: Mapping[str, Hashed],
    result: Hashed,
    *,
    device: str = "cpu",
    hub: Mapping[str, str] | None = None,
) -> dict[str, bytes]:
    """The files that say what made a result: its record and its model card; for `save(..., last=...)`.

    Args:
        recipe: what was done.
        inputs: every checkpoint of the recipe by its address, after the result was read.
        result: the fused checkpoint, read once and whole.
        device: where blocks were computed.
        hub: the Hugging Face ids of those addresses that are on that hub; the card links to them.

    Raises:
        FuseError: statistics went in that were measured on another model.

    >>> import torch
    >>> from cofuse.checkpoint import Memory
    >>> from cofuse.fuse import Recipe, fuse
    >>> models = {name: Hashed(Memory({"x": torch.full((2,), value)})) for name, value in [("a", 1.0), ("b", 2.0)]}
    >>> result = Hashed(fuse("linear", list(models.values())), once=True)
    >>> _ = result.read("x")
    >>> recipe = Recipe.model_validate({"merge_method": "linear", "models": [{"model": "a"}, {"model": "b"}]})
    >>> sorted(recorded(recipe, models, result))
    ['README.md', 'cofuse.json']
    """
    ids = result.tensor_ids()
    records = tuple(input_record(address, inputs[address]) for address in recipe.addresses)
    refuse_unbound(recipe, inputs, {record.address: record.content for record in records})
    own = {name: data for name, data in result.files.items() if name not in (RECORD, CARD)}
    record = Record(
        recipe=recipe.canonical,
        seed=recipe.seed,
        versions=versions(),
        device=device,
        inputs=records,
        output=OutputRecord(
            content=content_id_of(ids),
            tensors=len(ids),
            files={name: file_id(data) for name, data in sorted(own.items())},
        ),
    )
    return {RECORD: record.encode(), CARD: card(record, hub or {})}


def read_record(checkpoint: Checkpoint) -> Record:
    """The record that a checkpoint carries.

    Raises:
        FuseError: it has none, or a damaged one.
    """
    raw = checkpoint.files.get(RECORD)
    if raw is None:
        raise FuseError(
            "no record of how it was made",
            where=checkpoint.where,
            expected=RECORD,
            hint="only `cofuse fuse` writes one",
        )
    try:
        return Record.model_validate(json.loads(raw))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise FuseError("not a record", where=f"{checkpoint.where}: {RECORD}", got=f"{place}: {first['msg']}") from None
    except (ValueError, RecursionError) as error:
        raise FuseError("not a record", where=f"{checkpoint.where}: {RECORD}", got=error) from None
