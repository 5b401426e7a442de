"""Statistics belong to the model they were measured on: its content id stands in their record.

Ids that are known cost nothing to compare: those of checkpoints in a store, and of files that were hashed before. What is
not known before a fuse is known after it, from the bytes that it read: the record of a result is not written, nor the
result, when something does not belong (`refuse_unbound`). Who writes no record reads such models once more, before the
first value of the result (`check_unread`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping

from ..checkpoint import Checkpoint, Hashed, content_id, content_id_of
from ..errors import FuseError
from .recipe import Recipe

STATISTICS = "statistics.json"


def said_of(statistics: Checkpoint, what: str) -> str | None:
    """What the record of statistics says: their `kind`, the content id of their `model`; None where it does not.

    >>> from cofuse.checkpoint import Memory
    >>> said_of(Memory({}, files={"statistics.json": b'{"model": "ab"}'}), "model")
    'ab'
    """
    try:
        said = json.loads(statistics.files.get(STATISTICS, b"null"))
    except (ValueError, RecursionError):
        said = None
    found = said.get(what) if isinstance(said, dict) else None
    return found if isinstance(found, str) else None


def check_bound(recipe: Recipe, models: Mapping[str, Checkpoint], statistics: Mapping[str, Checkpoint]) -> list[str]:
    """Compare what costs nothing to compare.

    Returns:
        Notes of statistics that do not say what they belong to, or whose model will never have a content id.

    Raises:
        FuseError: statistics of another kind or model.
    """
    notes = []
    for name, address, model in _pairs(recipe):
        kind, wanted = said_of(statistics[address], "kind"), said_of(statistics[address], "model")
        if kind not in {name, None}:
            raise FuseError("statistics of another kind", where=address, got=kind, expected=name)
        if wanted is None:
            notes.append(f"{address}: does not say which model it is the {name} of")
        elif model is None or model not in models:
            notes.append(f"{address}: not checked to be the {name} of a model that is itself a fuse")
        elif (found := known_content_id(models[model])) is not None:
            _refuse(name, address, model, wanted, found)
    return notes


def check_unread(
    recipe: Recipe, models: Mapping[str, Checkpoint], statistics: Mapping[str, Checkpoint]
) -> Callable[[], None] | None:
    """What compares the statistics of models whose ids are not known, reading them whole: once, however often it is called.

    Args:
        recipe: what will be done.
        models: those that nobody else will compare, by address.
        statistics: by address.

    Returns:
        A function that raises FuseError as `refuse_unbound` does; None where nothing is left to compare.
    """
    watched = {address: one if isinstance(one, Hashed) else Hashed(one) for address, one in models.items()}
    left = [
        (name, address, model, wanted)
        for name, address, model in _pairs(recipe)
        if model in watched
        and known_content_id(watched[model]) is None
        and (wanted := said_of(statistics[address], "model")) is not None
    ]

    def compare() -> None:
        for name, address, model, wanted in left:
            _refuse(name, address, model, wanted, content_id(watched[model]))

    return compare if left else None


def refuse_unbound(recipe: Recipe, inputs: Mapping[str, Hashed], contents: Mapping[str, str | None]) -> None:
    """Compare everything, now that the models were read.

    Args:
        recipe: what was done.
        inputs: every checkpoint of it, by address.
        contents: content ids by address.

    Raises:
        FuseError: statistics of another model.
    """
    for name, address, model in _pairs(recipe):
        wanted = said_of(inputs[address], "model")
        found = None if model is None else contents.get(model)
        if wanted is not None and found is not None and model is not None:
            _refuse(name, address, model, wanted, found)


def known_content_id(checkpoint: Checkpoint) -> str | None:
    """The content id of a checkpoint, if it is known without reading."""
    known = getattr(checkpoint, "known_ids", None) or getattr(checkpoint, "tensor_ids", None)
    ids: Mapping[str, str] = {} if known is None else known()
    return content_id_of(ids) if ids and set(ids) == set(checkpoint.names()) else None


def _pairs(recipe: Recipe) -> Iterator[tuple[str, str, str | None]]:
    """Every statistic: its name, its address, and that of the model it stands beside, if it is not a recipe."""
    for _, given in recipe.given():
        for name, address in given.statistics.items():
            yield name, address, given.model if isinstance(given.model, str) else None


def _refuse(name: str, address: str, model: str, wanted: str, found: str) -> None:
    if wanted != found:
        raise FuseError(
            "statistics of another model",
            where=f"{address}, given as the {name} of {model}",
            got=f"measured on {wanted}",
            expected=found,
            hint=f"measure it on this very checkpoint: cofuse {name} {model} --task T -o {address}",
        )
