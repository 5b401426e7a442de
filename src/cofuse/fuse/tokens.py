"""What a recipe may say of tokenizers and of single tokens, in mergekit's words."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from ..document import Document

# Sources of a tokenizer that are no model's address.
WORDS = ("union", "join", "base", "pad")


class ZeroRow(Document):
    """A row of zeros."""

    kind: Literal["zero"]


class ModelRow(Document):
    """The row of another token: exactly one of `token` and `token_id`."""

    kind: Literal["model_token"]
    model: str
    token: str | None = None
    token_id: int | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _one_of_both(self) -> ModelRow:
        if (self.token is None) == (self.token_id is None):
            raise ValueError('either "token" or "token_id"')
        return self


class TokenRow(Document):
    """Where the rows of one token come from: a model's address, another token, zeros."""

    source: ZeroRow | ModelRow | str | None = None
    force: bool = False

    @model_validator(mode="after")
    def _forced_to_something(self) -> TokenRow:
        if self.force and self.source is None:
            raise ValueError('a "source" to force')
        return self


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
        named = [] if self.source in WORDS else [self.source]
        for row in self.tokens.values():
            if isinstance(row.source, str):
                named.append(row.source)
            elif isinstance(row.source, ModelRow):
                named.append(row.source.model)
        return tuple(dict.fromkeys(named))
