"""What TIES, DARE, DELLA and Breadcrumbs share: task vectors made sparse, then added or elected.

    delta_i = mask_i * (t_i - base) * rescale_i
    out     = base + lambda * combine(w_i delta_i)

The masks differ, and so does what must be known of a tensor for them. What is the same for all of them:

* Task vectors are taken in float32 (mergekit rounds them to the working dtype first, so that in bf16 many magnitudes tie).
* density 1 keeps everything as it is, density 0 nothing; neither is rescaled.
* `rescale` by "l1" gives each task vector the L1 norm back that it had before the mask, taken over the tensor, as mergekit
  does (not where a norm is below 1e-7, mergekit's bound); by "density" it divides by the probability of being kept, as
  the papers on random masks do.
* The elected sign is that of the sum of the weighted sparse task vectors, + where it is 0, as in mergekit; `sign` "count"
  counts their signs instead (PEFT's "frequency"). What agrees is summed and, when normalised, divided by the sum of its
  weights, with 1 for 0. PEFT elects before it weights and divides by the number of those that agree, which is the same for
  equal weights.
* `int8_mask` is accepted, because recipes have it, and changes nothing: it saves mergekit memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import array_api_compat

from .gram import deltas
from .method import Array, Place, Scan
from .random import stream
from .select import Cut
from .steps import Steps, steps_for

Sign = Literal["sum", "count"]
By = Literal["l1", "density"]
# mergekit's bound, below which a norm is not restored.
SMALL = 1e-7


class Mask(Protocol):
    """Which entries of one model's task vector are kept."""

    def apply(self, steps: Steps, delta: Array, place: Place, model: int, factor: float) -> None:
        """Set the others to 0, and multiply what is kept by `factor`; in place."""


@dataclass(frozen=True, slots=True)
class Whole:
    """Keeps everything, or nothing."""

    kept: bool

    def apply(self, steps: Steps, delta: Array, place: Place, model: int, factor: float) -> None:
        delta *= factor if self.kept else 0.0


@dataclass(frozen=True, slots=True)
class Band:
    """Keeps what comes before `outer` and not before `inner` when ordered by magnitude, the largest first."""

    outer: Cut
    inner: Cut

    def apply(self, steps: Steps, delta: Array, place: Place, model: int, factor: float) -> None:
        outer, inner = ((cut.value, cut.until(delta, place.index, steps)) for cut in (self.outer, self.inner))
        steps.trim(delta, outer, inner, factor)


@dataclass(frozen=True, slots=True)
class Drop:
    """Keeps each entry with the same probability."""

    density: float

    def apply(self, steps: Steps, delta: Array, place: Place, model: int, factor: float) -> None:
        steps.drop(delta, stream(place.seed, place.tensor, model), place.start, self.density, factor)


@dataclass(frozen=True, slots=True)
class DropByRank:
    """Keeps each entry with a probability that grows with its rank in the row; `inverse` divides by it."""

    density: float
    epsilon: float
    inverse: bool

    def apply(self, steps: Steps, delta: Array, place: Place, model: int, factor: float) -> None:
        key = stream(place.seed, place.tensor, model)
        steps.drop_by_rank(delta, key, place.start, self.density, self.epsilon, factor, self.inverse)


@dataclass(frozen=True, slots=True)
class Sparsity:
    """What a survey finds: each model's mask, and what its task vector is multiplied by."""

    masks: tuple[Mask, ...]
    factors: tuple[float, ...]


def rescaled(scan: Scan, masks: Sequence[Mask], density: Sequence[float], rescale: bool, by: By) -> Sparsity:
    """The masks with what each task vector is multiplied by; goes over the tensor when L1 norms are wanted."""
    factors = [1.0] * len(masks)
    masked = [not isinstance(mask, Whole) for mask in masks]
    if rescale and by == "density":
        # A mask that divides each entry by its own probability has done so already.
        factors = [
            1 / d if m and not isinstance(mask, DropByRank) else 1.0
            for mask, d, m in zip(masks, density, masked, strict=True)
        ]
    elif rescale and any(masked):

        def look(models: Iterable[Array], base: Array | None, place: Place) -> list[tuple[float, float]]:
            norms = []
            for i, delta in enumerate(deltas(models, base)):
                if not masked[i]:
                    norms.append((0.0, 0.0))
                    continue
                steps = steps_for(delta)
                before = steps.magnitude(delta)
                masks[i].apply(steps, delta, place, i, 1.0)
                norms.append((before, steps.magnitude(delta)))
            return norms

        blocks = scan(look)
        for i in range(len(masks)):
            before, after = (sum(block[i][k] for block in blocks) for k in (0, 1))
            if before >= SMALL and after >= SMALL:
                factors[i] = before / after
    return Sparsity(tuple(masks), tuple(factors))


def sparse_sum(
    models: Iterable[Array],
    base: Array | None,
    known: Sparsity,
    place: Place,
    *,
    weight: Sequence[float],
    scale: float,
    normalize: bool,
    steps: Steps,
) -> Array:
    """The base plus the weighted sum of the sparse task vectors, over the sum of the weights when normalised."""
    assert base is not None  # the plan refuses these methods without a base
    total: Array | None = None
    for i, delta in enumerate(deltas(models, base)):
        known.masks[i].apply(steps, delta, place, i, weight[i] * known.factors[i])
        if total is None:
            total = delta
        else:
            total += delta
        del delta
    assert total is not None  # or of no models
    whole = sum(weight)
    # As in mergekit, weights that cancel divide nothing.
    total *= scale / whole if normalize and abs(whole) >= 1e-8 else scale
    total += base
    return total


def elected_sum(
    models: Iterable[Array],
    base: Array | None,
    known: Sparsity,
    place: Place,
    *,
    weight: Sequence[float],
    scale: float,
    normalize: bool,
    sign: Sign,
    steps: Steps,
) -> Array:
    """The base plus the sum, or mean, of the sparse task vectors that agree with the elected sign."""
    assert base is not None
    xp = array_api_compat.array_namespace(base)
    size = base.shape
    stack = xp.empty((len(weight), *size), dtype=base.dtype, device=array_api_compat.device(base))
    for i, model in enumerate(models):
        xp.subtract(model, base, out=stack[i])
        del model
        known.masks[i].apply(steps, stack[i], place, i, weight[i] * known.factors[i])
    flat = base.reshape(-1)
    out: Array = steps.elect(
        stack.reshape(len(weight), -1),
        flat,
        [1.0] * len(weight),
        weight,
        scale=scale,
        normalize=normalize,
        count=sign == "count",
        least=0.0,
    )
    return out.reshape(size)
