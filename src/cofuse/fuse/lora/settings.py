"""What to extract, and how."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ...checkpoint.modules import fits, named
from ...errors import FuseError

FACTORS = ("F32", "F16", "BF16")
RANK = 16  # when nobody says


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """What to extract, and how.

    Attributes:
        rank: of each product, at most; with `max_error` the largest allowed, else 16 when None.
        max_error: choose each tensor's rank as the least that leaves at most this relative Frobenius error.
        alpha: LoRA's; the rank when None, so that products count as they are.
        modules: only these, by their full names or the last parts (`q_proj`); all when empty.
        include: only modules whose names these fit: a glob, or a part of the name.
        exclude: not these.
        save: modules to be kept whole.
        embeddings: embeddings and heads too as products, not whole.
        distribute_scale: the singular values' roots on both factors; all on A when False.
        epsilon: drop singular values up to this.
        skip: leave out changes that a LoRA cannot hold (and norms, embeddings and such) instead of keeping them whole.
        dtype: of the factors: a safetensors code; the tuned tensor's when None.
    """

    rank: int | None = None
    max_error: float | None = None
    alpha: float | None = None
    modules: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    save: tuple[str, ...] = ()
    embeddings: bool = False
    distribute_scale: bool = True
    epsilon: float = 0.0
    skip: bool = False
    dtype: str | None = None

    def __post_init__(self) -> None:
        if self.rank is not None and self.rank < 1:
            raise FuseError("a rank is at least 1", got=self.rank)
        if self.max_error is not None and not 0 <= self.max_error < 1:
            raise FuseError("an error is a share of the change", got=self.max_error, expected="0 to 1")
        if self.alpha is not None and not (math.isfinite(self.alpha) and self.alpha > 0):
            raise FuseError("alpha is above 0", got=self.alpha)
        if self.alpha is not None and self.rank is None and self.max_error is not None:
            raise FuseError("alpha means something only with a rank", got=self.alpha, hint="give a rank too")
        if self.dtype is not None and self.dtype not in FACTORS:
            raise FuseError("a dtype of factors", got=self.dtype, expected=", ".join(FACTORS))

    def wants(self, module: str) -> bool:
        """Whether a module is to be extracted at all."""
        if self.modules and not named(module, self.modules):
            return False
        if self.include and not any(fits(module, pattern) for pattern in self.include):
            return False
        return not any(fits(module, pattern) for pattern in self.exclude)


def scale_of(settings: LoraSettings) -> float:
    """LoRA's s: alpha over the rank asked for, 1 without an alpha."""
    if settings.alpha is None:
        return 1.0
    return settings.alpha / (settings.rank or RANK)
