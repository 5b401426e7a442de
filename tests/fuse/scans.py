"""Surveys over arrays in memory, cut into blocks of any size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from cofuse.fuse.methods import Look, Place
from cofuse.fuse.methods.method import T

NAME = "layer.weight"


def places(size: int, block: int, shape: tuple[int, ...] = (), seed: int = 0) -> Iterator[tuple[Place, slice]]:
    """The blocks of a flattened tensor."""
    for index, start in enumerate(range(0, size, block)):
        yield Place(NAME, shape or (size,), index, start, seed), slice(start, start + block)


class ScanOf:
    """Hands out copies of the blocks of these models and base: flat, or as rows when `row` is given."""

    def __init__(
        self,
        models: Sequence[Any],
        base: Any = None,
        *,
        block: int = 10**9,
        row: int | None = None,
        threads: int = 1,
        seed: int = 0,
    ) -> None:
        self.models, self.base, self.block, self.row = list(models), base, block, row
        self.threads, self.seed, self.scans = threads, seed, 0

    def blocks(self, values: Any, part: slice) -> Any:
        copied = values.reshape(-1)[part] + 0
        return copied if self.row is None else copied.reshape(-1, self.row)

    def given(self, part: slice) -> tuple[Iterator[Any], Any]:
        return (self.blocks(m, part) for m in self.models), (
            None if self.base is None else self.blocks(self.base, part)
        )

    def places(self) -> list[tuple[Place, slice]]:
        first = self.models[0]
        size = len(first.reshape(-1))
        return list(places(size, self.block, tuple(first.shape), self.seed))

    def __call__(self, look: Look[T]) -> list[T]:
        self.scans += 1

        def one(at: tuple[Place, slice]) -> T:
            models, base = self.given(at[1])
            return look(models, base, at[0])

        with ThreadPoolExecutor(self.threads) as pool:
            return list(pool.map(one, self.places()))
