"""Models that share only a part, under names of their own: a plain language model and that of a vision-language model."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import ConfigDict, Field

from ..checkpoint import Checkpoint, View, overlaid, renamed
from ..document import Document
from ..errors import FuseError


class Prefix(Document):
    """`prefix: {from: "model.", to: "language_model.model."}`; a model may have a list of them."""

    model_config = ConfigDict(populate_by_name=True)

    from_: str = Field(alias="from")
    to: str


def part_of(
    model: Checkpoint, whole: Checkpoint, prefixes: Sequence[Prefix] = (), *, partial: bool = False
) -> Checkpoint:
    """The model under the names of `whole`.

    Args:
        model: has some of the tensors that `whole` has.
        whole: gives the names; the base, or the first model without one.
        prefixes: beginnings of names and what stands in their place; the longest that fits counts, other names stay.
        partial: what the model lacks is the whole's, and what the whole lacks is left out.

    Returns:
        A view that keeps the model's own files, for its tokenizer; the model itself where nothing is to do.

    Raises:
        FuseError: two tensors get one name, no name fits a prefix, or nothing is shared.

    >>> import torch
    >>> from cofuse.checkpoint import Memory
    >>> plain = Memory({"model.w": torch.ones(1)})
    >>> tower = Memory({"language_model.model.w": torch.zeros(1), "vision.w": torch.zeros(1)})
    >>> view = part_of(plain, tower, [Prefix(from_="model.", to="language_model.model.")], partial=True)
    >>> view.names(), view.read("language_model.model.w").item()
    (('language_model.model.w', 'vision.w'), 1.0)
    """
    names = (*model.names(), *model.aliases)
    for prefix in prefixes:
        if not any(name.startswith(prefix.from_) for name in names):
            raise FuseError(
                "no tensor has the prefix",
                where=model.where,
                got=prefix.from_,
                expected=", ".join(sorted({name.split(".", 1)[0] + "." for name in names})[:6]),
            )
    longest = sorted(prefixes, key=lambda p: -len(p.from_))

    def rename(name: str) -> str:
        found = next((p for p in longest if name.startswith(p.from_)), None)
        return name if found is None else found.to + name[len(found.from_) :]

    view = renamed(model, rename) if prefixes else model
    if not partial:
        return view
    shared = renamed(view, lambda name: name if name in whole else None)
    if not shared.names():
        raise FuseError(
            "the models share no tensor",
            where=model.where,
            got=", ".join(view.names()[:3]),
            expected=", ".join(whole.names()[:3]),
            hint="prefix: {from: ..., to: ...} says how the names go together",
        )
    over = overlaid(whole, shared)
    return View(over.sources, files=model.files, metadata=over.metadata, aliases=over.aliases, where=model.where)
