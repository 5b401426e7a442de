"""Ways to keep less than the whole of a change: under a mask, or of low rank."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..checkpoint import Checkpoint, TensorSpec
from ..checkpoint.bitcode import width_of
from ..checkpoint.floats import as_floats
from ..checkpoint.lowrank import factored
from ..document import nearest
from ..errors import PatchError
from .making import Pair, Way
from .masks import BIASES, Mask, Named, Scores, at_random, by_fisher, by_magnitude, top
from .products import FACTORS, Product


@dataclass(frozen=True)
class Sparse(Way):
    """The change under a mask; exact where the training was masked so.

    Attributes:
        share: of all values of floats that both checkpoints have, for masks that count: 0.005 for 0.5 %.
        by: `magnitude` of the change, `fisher`, `random`, `bias` or `names`.
        fisher: the checkpoint of statistics.
        seed: of `random`.
        globs: of `names`.
        per_tensor: whether the share is of each tensor instead of all.
    """

    finite: ClassVar[bool] = True

    share: float = 0.005
    by: str = "magnitude"
    fisher: Checkpoint | None = None
    seed: int = 0
    globs: tuple[str, ...] = ()
    per_tensor: bool = False

    def says(self) -> str:
        part = f"{100 * self.share:g} %{' of each tensor' if self.per_tensor else ''}"
        said = {
            "bias": "biases alone",
            "names": f"tensors named {', '.join(self.globs)}",
            "random": f"{part} at random, seed {self.seed}",
            "fisher": f"{part} by Fisher",
        }
        return f"sparse: {said.get(self.by, f'{part} by {self.by}')}"

    def mask(self, pair: Pair, names: Iterable[str]) -> Mask | None:
        specs = {name: pair.edited[name] for name in names}
        if self.by in ("bias", "names"):
            return Named(specs, BIASES if self.by == "bias" else self.globs)
        if self.by not in SCORES:
            known = [*SCORES, "bias", "names"]
            raise PatchError("no such mask", got=self.by, hint=nearest(self.by, known))
        return top(
            SCORES[self.by](self, pair),
            specs,
            self.share,
            per_tensor=self.per_tensor,
            threads=pair.threads,
            progress=pair.progress,
        )


def _fisher(way: Sparse, pair: Pair) -> Scores:
    if way.fisher is None:
        raise PatchError("a mask by Fisher needs one", hint="cofuse fisher MODEL --task T -o F, then --by fisher:F")
    return by_fisher(way.fisher, pair.base)


# A mask that takes the top of a score is one row.
SCORES: dict[str, Callable[[Sparse, Pair], Scores]] = {
    "magnitude": lambda way, pair: by_magnitude(pair.base, pair.tuned),
    "fisher": _fisher,
    "random": lambda way, pair: at_random(pair.base, way.seed),
}


@dataclass(frozen=True)
class LowRank(Way):
    """Each matrix's change as the nearest product of a rank; exactly where that is shorter, and where it is no matrix.

    Attributes:
        rank: of each product, at most.
        error: the least rank that leaves at most this share of each tensor's change: relative Frobenius norm.
    """

    finite: ClassVar[bool] = True

    rank: int | None = None
    error: float | None = None

    def __post_init__(self) -> None:
        if self.rank is None and self.error is None:
            raise PatchError("a low rank has a rank, or an error")
        if self.rank is not None and self.rank < 1:
            raise PatchError("a rank is at least 1", got=self.rank)
        if self.error is not None and not (math.isfinite(self.error) and 0 < self.error < 1):
            raise PatchError("an error is a share of the change", got=self.error, expected="between 0 and 1")

    def says(self) -> str:
        parts = [] if self.rank is None else [f"rank {self.rank} at most"]
        return "low rank: " + ", ".join(parts if self.error is None else [*parts, f"error {self.error:g} at most"])

    def product(self, pair: Pair, name: str) -> Product | None:
        # Memory is about six times the tensor in float32: a decomposition needs it whole.
        spec = pair.edited[name]
        after, before = (_whole(cp, name, spec) for cp in (pair.tuned, pair.base))
        change = (after - before).reshape(spec.shape[0], -1).astype(np.float32, copy=False)
        if not change.any():
            return None  # -0 for 0, or smaller than a float32 can be
        code = spec.dtype if spec.dtype in FACTORS else "F32"
        found = factored(change, min(change.shape) if self.rank is None else self.rank, code, error=self.error)
        return Product(found.a, found.b, 1.0, code)

    def prefers(self, product: Product, stored: int) -> bool:
        return (product.a.size + product.b.size) * width_of(product.dtype) < stored


def _whole(checkpoint: Checkpoint, name: str, spec: TensorSpec) -> Any:
    working: Any = np.float64 if spec.dtype == "F64" else np.float32
    return as_floats(np.frombuffer(checkpoint.read_bytes(name), np.uint8), spec.dtype, working)
