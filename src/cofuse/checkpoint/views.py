"""Checkpoints made of others without reading them: renamed, restacked, overlaid, with other files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import CheckpointError
from .architecture import BEHIND, PER_LAYER, at, changed, layer_counts, layer_of, main_stacks
from .checkpoint import BLOCK_BYTES, Checkpoint, TensorSpec
from .header import check_name


@dataclass(frozen=True, slots=True)
class Source:
    """One tensor of a view: which checkpoint has it, under which name."""

    checkpoint: Checkpoint
    name: str


class View(Checkpoint):
    """A checkpoint whose every tensor is one of another checkpoint's."""

    def __init__(
        self,
        sources: Mapping[str, Source],
        *,
        files: Mapping[str, bytes] | None = None,
        metadata: Mapping[str, str] | None = None,
        aliases: Mapping[str, str] | None = None,
        where: str = "view",
    ) -> None:
        self.sources = dict(sources)
        self._files = files if files is not None else {}
        self._metadata = metadata if metadata is not None else {}
        self._aliases = dict(aliases or {})
        self._where = where

    def names(self) -> tuple[str, ...]:
        return tuple(self.sources)

    def spec(self, name: str) -> TensorSpec:
        source = self._source(name)
        return source.checkpoint.spec(source.name)

    def read_bytes(self, name: str, start: int = 0, stop: int | None = None) -> bytes | bytearray | memoryview:
        source = self._source(name)
        return source.checkpoint.read_bytes(source.name, start, stop)

    def read_into(self, name: str, start: int, out: memoryview) -> None:
        source = self._source(name)
        source.checkpoint.read_into(source.name, start, out)

    def blocks(self, name: str, size: int = BLOCK_BYTES) -> Iterator[tuple[int, int]]:
        source = self._source(name)
        return source.checkpoint.blocks(source.name, size)

    def _source(self, name: str) -> Source:
        source = self.sources.get(self.resolve(name))
        if source is None:
            raise self.missing(name)
        return source


def with_files(checkpoint: Checkpoint, files: Mapping[str, bytes]) -> View:
    """The same tensors with other files beside them."""
    return View(
        {name: Source(checkpoint, name) for name in checkpoint.names()},
        files=files,
        metadata=checkpoint.metadata,
        aliases=checkpoint.aliases,
        where=checkpoint.where,
    )


def renamed(checkpoint: Checkpoint, rename: Callable[[str], str | None]) -> View:
    """Tensors under other names; those renamed to None are left out.

    Raises:
        CheckpointError: two tensors get the same name.

    >>> import torch
    >>> from cofuse.checkpoint import Memory
    >>> renamed(Memory({"bert.x": torch.ones(1)}), lambda n: n.removeprefix("bert.")).names()
    ('x',)
    """
    sources: dict[str, Source] = {}
    for name in checkpoint.names():
        new = rename(name)
        if new is None:
            continue
        if new in sources:
            raise CheckpointError("two tensors under one name", where=checkpoint.where, got=f"{name} -> {new}")
        sources[check_name(new, checkpoint.where)] = Source(checkpoint, name)
    aliases: dict[str, str] = {}
    homes = {source.name: new for new, source in sources.items()}
    for old, kept in checkpoint.aliases.items():
        alias = rename(old)
        if alias is None or homes.get(kept) == alias:
            continue
        if alias in sources or alias in aliases:
            raise CheckpointError("two tensors under one name", where=checkpoint.where, got=f"{old} -> {alias}")
        if kept in homes:
            aliases[check_name(alias, checkpoint.where)] = homes[kept]
        else:
            # The name it was kept under is left out: the first of its other names keeps it now.
            sources[check_name(alias, checkpoint.where)] = Source(checkpoint, old)
            homes[kept] = alias
    return View(
        sources,
        files=checkpoint.files,
        metadata={k: v for k, v in checkpoint.metadata.items() if k not in checkpoint.aliases},
        aliases=aliases,
        where=checkpoint.where,
    )


def overlaid(base: Checkpoint, top: Checkpoint) -> View:
    """The base's tensors, with those that `top` has too taken from `top`, and those that it alone has.

    Names that the base ties stay tied unless `top` has them apart.
    """
    own = {*top.names(), *top.aliases}
    sources = {n: Source(top if n in own else base, n) for n in base.names()}
    aliases: dict[str, str] = {}
    for alias, kept in base.aliases.items():
        if alias in own and (kept not in own or top.resolve(alias) != top.resolve(kept)):
            sources[alias] = Source(top, alias)
        else:
            aliases[alias] = kept
    for name in top.names():
        if name not in sources and name not in aliases:
            sources[name] = Source(top, name)
    for alias, kept in top.aliases.items():
        if alias not in sources and alias not in aliases:
            aliases[alias] = aliases.get(kept, kept)
    return View(
        sources,
        files=base.files,
        metadata=base.metadata,
        aliases=aliases,
        where=base.where,
    )


@dataclass(frozen=True, slots=True)
class Slice:
    """Layers `start` to `stop` (not included) of a checkpoint."""

    checkpoint: Checkpoint
    start: int
    stop: int


def restacked(slices: Sequence[Slice]) -> View:
    """A new stack of layers from slices of one or more checkpoints, with the config's layer count rewritten.

    Tensors outside the layers come from the first slice's checkpoint, except those behind the stack (a last norm, a
    pooler, a head), which the last slice's checkpoint gives when it has them, as in mergekit's passthrough. What the
    config says layer by layer (`layer_types`) is taken along with the layers.

    Raises:
        CheckpointError: no layers are found, a slice asks for layers that are not there, or the model has more than one
            stack (an encoder and a decoder). Of a model with a vision tower the language model's layers are meant.
    """
    if not slices:
        raise CheckpointError("no slices", expected="at least one")
    first, last = slices[0].checkpoint, slices[-1].checkpoint
    stack = _the_stack(first)
    sources: dict[str, Source] = {
        n: Source(last if BEHIND.search(n) and n in last and last.spec(n) == first.spec(n) else first, n)
        for n in first.names()
        if _number(n, stack) is None
    }
    taken: list[tuple[Checkpoint, int]] = []
    for part in slices:
        layers: dict[int, list[str]] = {}
        for name in part.checkpoint.names():
            number = _number(name, stack)
            if number is not None:
                layers.setdefault(number, []).append(name)
        for number in range(part.start, part.stop):
            if number not in layers:
                raise CheckpointError(
                    "no such layer",
                    where=part.checkpoint.where,
                    got=f"layer {number}",
                    expected=f"0 to {max(layers, default=-1)}",
                )
            for name in layers[number]:
                rest = name[len(stack) + 1 :].partition(".")[2]
                sources[f"{stack}.{len(taken)}.{rest}"] = Source(part.checkpoint, name)
            taken.append((part.checkpoint, number))
    if not taken:
        raise CheckpointError("no layers in the slices", where=first.where, expected="at least one")
    return View(
        sources,
        files=_with_config(first, taken),
        metadata=first.metadata,
        aliases={
            k: v for k, v in first.aliases.items() if k not in sources and v in sources and _number(k, stack) is None
        },
        where=" + ".join(f"{s.checkpoint.where}[{s.start}:{s.stop}]" for s in slices),
    )


def _the_stack(checkpoint: Checkpoint) -> str:
    found = main_stacks(checkpoint.names())
    if len(found) > 1:
        raise CheckpointError(
            "layers of a model with more than one stack cannot be restacked",
            where=checkpoint.where,
            got=", ".join(found),
            hint="fuse it whole: give models instead of slices",
        )
    return next(iter(found), "")


def _number(name: str, stack: str) -> int | None:
    spot = layer_of(name)
    return spot[1] if spot is not None and spot[0] == stack else None


def _with_config(first: Checkpoint, taken: Sequence[tuple[Checkpoint, int]]) -> Mapping[str, bytes]:
    """The first checkpoint's files, with the config made to fit."""
    config = stacked_config(first, taken)
    if config == first.config:
        return first.files
    return {**first.files, "config.json": json.dumps(config, indent=2).encode() + b"\n"}


def stacked_config(first: Checkpoint, taken: Sequence[tuple[Checkpoint, int]]) -> dict[str, Any]:
    """The first checkpoint's config made to fit a stack of layers, each a checkpoint and the layer's number there."""
    counts = layer_counts(_the_stack(first), first.config)
    values: dict[tuple[str, ...], object] = dict.fromkeys(counts, len(taken))
    around = counts[0][:-1] if counts else ()
    for key in PER_LAYER:
        path = (*around, key)
        lists = [at(cp.config, path)[n : n + 1] for cp, n in taken if isinstance(at(cp.config, path), list)]
        if len(lists) == len(taken) and all(lists):
            values[path] = [value for (value,) in lists]
    return changed(first.config, values)
