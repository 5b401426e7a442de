"""Models whose vocabularies differ, as models with one vocabulary: rows are matched by their token.

The seam with recipes: these run in this order on the opened checkpoints, by their addresses, before anything is planned.

    {address: dequantized(opened)}                                    checkpoint/quantized.py
    {address: part_of(model, base, prefixes, partial=...)}            fuse/partial.py
    with_vocabulary(settings, models, leader=..., base=..., others=...)
    with_chat_template(template, models, leader=...)                  fuse/chat.py

Each gives a mapping of the same addresses. What changes in the result's files (config, tokenizer) is already in the
`files` of the leader's view, so that nothing else needs to be carried along.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..checkpoint import Checkpoint, Source
from ..checkpoint.rows import FILL, Gathered, Rows
from ..errors import FuseError
from .joining import Joining, resized, rounded, same_files, vocabulary_rows
from .tokenizer import Tokenizer, difference, read_tokenizer
from .tokens import ModelRow, TokenizerSettings, TokenRow, ZeroRow

_SETTINGS = "tokenizer_source: union (all tokens), base (the base's), pad (rows by number), or a model"
__all__ = ["ModelRow", "TokenRow", "TokenizerSettings", "ZeroRow", "with_vocabulary"]


def with_vocabulary(
    settings: TokenizerSettings | None,
    models: Mapping[str, Checkpoint],
    *,
    leader: str,
    base: str | None = None,
    others: Mapping[str, Checkpoint] | None = None,
) -> dict[str, Checkpoint]:
    """Views of the models with equal vocabularies, by the same addresses; the models themselves where nothing is to do.

    A model keeps its own row of every token it has. A token that it lacks gets, as in mergekit's `tokenizer`: the row
    of the one model that has it; else the base's; else the mean over the models that have it; zeros where none has.
    Two things differ from mergekit. Rows beyond the last token, with which a vocabulary is padded, are kept unless
    `pad_to_multiple_of` says how many there are to be (1: none); and every model of the recipe can give a row, not
    only those of the slice that holds the embedding.

    Args:
        settings: what the recipe says; None where it says nothing: then vocabularies that differ are refused.
        models: all that are fused, the base among them, by their addresses, in the recipe's order.
        leader: the address of the model that gives names and files: the base, or the first model without one.
        base: the base's address, None without one.
        others: checkpoints that only the settings name (`settings.addresses` that are not among the models).

    Raises:
        FuseError: the vocabularies differ and nothing says what to do, or what is asked for cannot be done.
    """
    if settings is None:
        _check_equal(models, leader)
        return dict(models)
    if settings.source == "pad":
        if settings.tokens:
            raise FuseError("rows of tokens need a tokenizer", got="tokenizer_source: pad", expected=_SETTINGS)
        return _padded(models, leader, settings.pad_to_multiple_of)
    return Joining(settings, models, leader, base, others or {}).views()


def _check_equal(models: Mapping[str, Checkpoint], leader: str) -> None:
    """Refuse vocabularies that cannot be fused row by row."""
    first = models[leader]
    rows = vocabulary_rows(first)
    ours: Tokenizer | None = None
    for model in models.values():
        for name, (_, count) in vocabulary_rows(model).items():
            if name in rows and rows[name][1] != count:
                raise FuseError(
                    "the vocabularies have different sizes",
                    where=f"{model.where}: {name}",
                    got=f"{count} rows",
                    expected=f"{rows[name][1]} as in {first.where}",
                    hint=_SETTINGS,
                )
        if model is first or not rows or same_files(model, first):
            continue
        ours = ours or read_tokenizer(first)
        theirs = read_tokenizer(model)
        if ours is None or theirs is None or ours.same_as(theirs):
            continue
        if ours.opaque is not None or theirs.opaque is not None:
            continue  # one of them cannot be read; the rows agree in number
        found = difference(ours, theirs)
        if found.crossed:
            number = found.crossed[0]
            raise FuseError(
                "the same row stands for different tokens",
                where=model.where,
                got=f"row {number} is {theirs.tokens[number]!r}; {len(found.crossed)} such rows",
                expected=f"{ours.tokens[number]!r} as in {first.where}",
                hint=_SETTINGS,
            )


def _padded(models: Mapping[str, Checkpoint], leader: str, multiple: int | None) -> dict[str, Checkpoint]:
    """All models with as many rows as the longest; those that one lacks are the leader's, else the first's that has them."""
    ordered = [models[leader], *(m for a, m in models.items() if a != leader)]
    places = {id(model): vocabulary_rows(model) for model in ordered}
    most = {
        name: max(places[id(m)][name][1] for m in ordered if name in places[id(m)])
        for name in dict.fromkeys(n for m in ordered for n in places[id(m)])
    }
    longest = rounded(max(most.values(), default=0), multiple)

    def view(model: Checkpoint) -> Checkpoint:
        rows: dict[str, Rows] = {}
        for name, (axis, count) in places[id(model)].items():
            if name in model.aliases or count == longest:
                continue
            sources = [model, *(m for m in ordered if m is not model and name in m)]
            which = np.full(longest, FILL, np.int32)
            for i in reversed(range(len(sources))):
                which[: places[id(sources[i])][name][1]] = i
            filled = most[name]
            row = np.arange(longest, dtype=np.int64)
            rows[name] = Rows(tuple(Source(m, name) for m in sources), which, row, filled=filled, axis=axis)
        return model if not rows else Gathered(model, rows, files=resized(model, dict(model.files), longest))

    return {address: view(model) for address, model in models.items()}
