"""Masks: which values of a model a sparse patch may change, or a masked training may train.

    magnitude   the k values that changed most, |tuned - base|; before a training the k largest, |base|
    fisher      FISH: the k values with the largest Fisher (Sung, Nair and Raffel, arXiv 2111.09839, sec. 2.2)
    random      k values drawn with a seed
    bias        every bias (BitFit: Ben Zaken, Ravfogel and Goldberg, arXiv 2106.10199)
    names       every tensor whose name fits a glob

The first three take the top k of a score. k is met exactly, without sorting and in memory of a few numbers a chunk: two
histograms of the scores' bits find the k-th largest, and of those that equal it the first are taken, by name (in byte
order) and place. So a mask depends neither on blocks nor on threads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from ..checkpoint import Checkpoint, TensorSpec, for_each
from ..checkpoint.bitcode import width_of
from ..checkpoint.floats import FLOATS, as_floats
from ..errors import PatchError
from ..progress import SILENT, Progress
from .manifest import chunk_range, chunks_of

Kept: TypeAlias = npt.NDArray[np.bool_]
Scores: TypeAlias = Callable[[str, int], npt.NDArray[np.uint32]]  # a tensor's chunk -> a score for each of its elements


class Mask(Protocol):
    """Which values may change."""

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """The tensors that it is of."""

    def keep(self, name: str, number: int) -> Kept:
        """Of each element of a tensor's chunk, whether it is in the mask."""


# Scores


def by_magnitude(base: Checkpoint, tuned: Checkpoint) -> Scores:
    """|tuned - base|, as float32."""

    def scores(name: str, number: int) -> npt.NDArray[np.uint32]:
        spec = base.spec(name)
        start, stop = chunk_range(spec, number)
        working: Any = np.float64 if spec.dtype == "F64" else np.float32
        after, before = (_floats(cp.read_bytes(name, start, stop), spec.dtype, working) for cp in (tuned, base))
        with np.errstate(over="ignore"):
            size = np.abs(after - before).astype(np.float32)
        return _as_scores(size, f"{tuned.where}: {name}")

    return scores


def by_size(model: Checkpoint) -> Scores:
    """|theta| of one model, as float32: what magnitude is before there is a change."""

    def scores(name: str, number: int) -> npt.NDArray[np.uint32]:
        spec = model.spec(name)
        working: Any = np.float64 if spec.dtype == "F64" else np.float32
        with np.errstate(over="ignore"):
            values = _floats(model.read_bytes(name, *chunk_range(spec, number)), spec.dtype, working)
            size = np.abs(values).astype(np.float32)
        return _as_scores(size, f"{model.where}: {name}")

    return scores


def by_fisher(fisher: Checkpoint, like: Checkpoint) -> Scores:
    """A checkpoint of statistics with the model's names and shapes; what it lacks scores nothing.

    Raises:
        PatchError: a statistic has another shape; none belongs to the model; or one is negative or not finite (when
            it is read).
    """
    known = [name for name in like.names() if name in fisher]
    if not known:
        raise PatchError(
            "the Fisher has no tensor of this model", where=fisher.where, expected=f"those of {like.where}"
        )
    for name in known:
        spec = fisher.spec(name)
        if spec.shape != like.spec(name).shape or spec.dtype not in FLOATS:
            raise PatchError(
                "the Fisher does not fit the model",
                where=f"{fisher.where}: {name}",
                got=f"{spec.dtype} {list(spec.shape)}",
                expected=f"a float {list(like.spec(name).shape)}",
            )

    def scores(name: str, number: int) -> npt.NDArray[np.uint32]:
        first, last = _elements(like.spec(name), number)
        if name not in fisher:
            return np.zeros(last - first, np.uint32)
        kind = fisher.spec(name).dtype
        width = width_of(kind)
        values = _floats(fisher.read_bytes(name, first * width, last * width), kind, np.float32)
        if values.size and float(values.min()) < 0:
            raise PatchError("a Fisher is not negative", where=f"{fisher.where}: {name}", got=float(values.min()))
        return _as_scores(np.abs(values), f"{fisher.where}: {name}")

    return scores


def at_random(like: Checkpoint, seed: int) -> Scores:
    """Numbers drawn by seed, name and chunk."""

    def scores(name: str, number: int) -> npt.NDArray[np.uint32]:
        first, last = _elements(like.spec(name), number)
        key = int.from_bytes(blake3(f"cofuse mask {seed} {number} {name}".encode()).digest(16), "little")
        draw = np.random.Generator(np.random.Philox(key=key))
        return draw.integers(0, 2**32, last - first, np.uint32)

    return scores


# Masks of them


@dataclass(frozen=True, slots=True)
class _Cut:
    """Scores above `score` are in; of those that equal it, the first `ties`."""

    score: int
    ties: int
    before: Mapping[tuple[str, int], int] = field(default_factory=dict)  # chunk -> ties in the chunks before it


@dataclass(frozen=True, slots=True)
class Top:
    """The values with the k largest scores: of the model, or of each tensor."""

    scores: Scores
    cuts: Mapping[str, _Cut]
    specs: Mapping[str, TensorSpec]

    def keep(self, name: str, number: int) -> Kept:
        scores, cut = self.scores(name, number), self.cuts[name]
        kept = scores > np.uint32(cut.score)
        left = cut.ties - cut.before.get((name, number), 0)
        if left > 0:
            kept[np.flatnonzero(scores == np.uint32(cut.score))[:left]] = True
        return kept


def top(
    scores: Scores,
    specs: Mapping[str, TensorSpec],
    share: float,
    *,
    per_tensor: bool = False,
    threads: int = 1,
    progress: Progress = SILENT,
) -> Top:
    """The mask of the largest scores.

    Args:
        scores: of every chunk; read three times.
        specs: the tensors that it is of.
        share: of all elements (of each tensor's): k = share n, rounded to the nearest, halves to even.
        per_tensor: whether each tensor has a k of its own.
        threads: how many; the mask does not depend on it.
        progress: told of every chunk.

    Raises:
        PatchError: the share is not one.
    """
    if not 0 <= share <= 1:
        raise PatchError("a share is between 0 and 1", got=share, expected="0.005, or 0.5%")
    names = sorted(specs, key=str.encode)
    groups = [[name] for name in names] if per_tensor else [names]
    bar = progress.bar("choosing", 3 * sum(len(chunks_of(specs[name])) for name in names))
    cuts: dict[str, _Cut] = {}
    for group in groups:
        count = sum(specs[name].numel for name in group)
        cut = _cut(
            scores, [(n, i) for n in group for i in chunks_of(specs[n])], round(share * count), threads, bar.advance
        )
        cuts.update(dict.fromkeys(group, cut))
    return Top(scores, cuts, specs)


def _cut(scores: Scores, chunks: list[tuple[str, int]], k: int, threads: int, advance: Callable[[float], None]) -> _Cut:
    high = _histogram(lambda s: s >> np.uint32(16), scores, chunks, threads, advance)
    bin_, above = _crossing(high, k)
    low = _histogram(
        lambda s: (s & np.uint32(0xFFFF))[s >> np.uint32(16) == np.uint32(bin_)], scores, chunks, threads, advance
    )
    rest, more = _crossing(low, k - above)
    score, ties = bin_ << 16 | rest, k - above - more
    counts: dict[tuple[str, int], int] = {}

    def count(chunk: tuple[str, int]) -> None:
        counts[chunk] = int(np.count_nonzero(scores(*chunk) == np.uint32(score)))
        advance(1)

    for_each(count, chunks, threads)
    before, seen = {}, 0
    for chunk in chunks:
        before[chunk] = seen
        seen += counts[chunk]
    return _Cut(score, ties, before)


def _histogram(
    part: Callable[[npt.NDArray[np.uint32]], npt.NDArray[np.uint32]],
    scores: Scores,
    chunks: Iterable[tuple[str, int]],
    threads: int,
    advance: Callable[[float], None],
) -> npt.NDArray[np.int64]:
    total, lock = np.zeros(1 << 16, np.int64), threading.Lock()

    def add(chunk: tuple[str, int]) -> None:
        found = np.bincount(part(scores(*chunk)), minlength=1 << 16)
        with lock:
            np.add(total, found, out=total)
        advance(1)

    for_each(add, chunks, threads)
    return total


def _crossing(histogram: npt.NDArray[np.int64], k: int) -> tuple[int, int]:
    """The bin, counted from the highest, in which the k-th lies, and how many lie above it."""
    down = np.cumsum(histogram[::-1])
    at = min(int(np.searchsorted(down, k, side="left")), len(down) - 1)
    return len(down) - 1 - at, int(down[at - 1]) if at else 0


@dataclass(frozen=True, slots=True)
class Named:
    """Whole tensors, by globs over their names."""

    specs: Mapping[str, TensorSpec]
    globs: tuple[str, ...]

    def keep(self, name: str, number: int) -> Kept:
        first, last = _elements(self.specs[name], number)
        return np.full(last - first, any(fnmatchcase(name, glob) for glob in self.globs))


BIASES = ("*.bias", "bias")  # BitFit


def places(mask: Mask, name: str) -> npt.NDArray[np.int64]:
    """Numbers of a tensor's elements that are in the mask, in order: eight bytes each."""
    spec = mask.specs[name]
    found = [np.flatnonzero(mask.keep(name, i)) + _elements(spec, i)[0] for i in chunks_of(spec)]
    return np.concatenate(found) if found else np.zeros(0, np.int64)


def _elements(spec: TensorSpec, number: int) -> tuple[int, int]:
    start, stop = chunk_range(spec, number)
    width = width_of(spec.dtype)
    return start // width, stop // width


def _floats(data: bytes | bytearray | memoryview, dtype: str, working: Any) -> npt.NDArray[Any]:
    return as_floats(np.frombuffer(data, np.uint8), dtype, working)


def _as_scores(values: npt.NDArray[np.float32], where: str) -> npt.NDArray[np.uint32]:
    """Bits of floats that are not negative: they rise with them."""
    if not np.isfinite(values).all():
        raise PatchError("a value is not finite", where=where, hint="a sparse patch has to know what is largest")
    return (values + np.float32(0)).view(np.uint32)  # 0, not -0
