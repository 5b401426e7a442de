"""Models whose vocabularies differ, as models with one vocabulary: rows are matched by their token.

The seam with recipes (settled; the recipe holds these settings and calls in this order, before planning):

    models = opened checkpoints by their address in the recipe
    models = {address: part_of(model, base, prefix, partial=...)}              fuse/partial.py
    models = with_vocabulary(recipe.tokenizer_settings, models, leader=..., base=..., others=...)
    models = with_chat_template(recipe.chat_template, models, leader=...)      fuse/chat.py

Each gives a mapping of the same addresses. What changes in the result's files (config, tokenizer) is already in the
`files` of the leader's view, so that nothing else needs to be carried along.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from ..checkpoint import Checkpoint
from ..document import Document


class ZeroRow(Document):
    """A row of zeros."""

    kind: Literal["zero"]


class ModelRow(Document):
    """The row of another token: exactly one of `token` and `token_id`."""

    kind: Literal["model_token"]
    model: str
    token: str | None = None
    token_id: int | None = Field(default=None, ge=0)


class TokenRow(Document):
    """Where the rows of one token come from: a model's address, another token, zeros."""

    source: ZeroRow | ModelRow | str | None = None
    force: bool = False


class TokenizerSettings(Document):
    """The recipe's `tokenizer`; `tokenizer_source: X` is `TokenizerSettings(source=X)`.

    `source` is "union" (also spelled "join"), "base", "pad" or a model's address.
    """

    source: str = "union"
    tokens: dict[str, TokenRow] = Field(default_factory=dict)
    pad_to_multiple_of: int | None = Field(default=None, ge=1)

    @property
    def addresses(self) -> tuple[str, ...]:
        """Every address these settings name, each once."""
        raise NotImplementedError


def with_vocabulary(
    settings: TokenizerSettings | None,
    models: Mapping[str, Checkpoint],
    *,
    leader: str,
    base: str | None = None,
    others: Mapping[str, Checkpoint] | None = None,
) -> dict[str, Checkpoint]:
    """Views of the models with equal vocabularies, by the same addresses; the models themselves where nothing is to do.

    Args:
        settings: what the recipe says; None where it says nothing: then vocabularies that differ are refused.
        models: all that are fused, the base among them, by their addresses, in the recipe's order.
        leader: the address of the model that gives names and files: the base, or the first model without one.
        base: the base's address, None without one.
        others: checkpoints that only the settings name (`settings.addresses` that are not among the models).

    Raises:
        FuseError: the vocabularies differ and nothing says what to do, or what is asked for cannot be done.
    """
    raise NotImplementedError
