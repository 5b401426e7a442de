"""Checkpoints made of others without reading them: renamed, restacked, overlaid, with other files."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import CheckpointError
from .checkpoint import Checkpoint, TensorSpec


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

    def read_bytes(self, name: str, start: int = 0, stop: int | None = None) -> bytes | bytearray:
        source = self._source(name)
        return source.checkpoint.read_bytes(source.name, start, stop)

    def blocks(self, name: str, size: int = 8 * 1024 * 1024) -> Iterator[tuple[int, int]]:
        source = self._source(name)
        return source.checkpoint.blocks(source.name, size)

    def _source(self, name: str) -> Source:
        source = self.sources.get(self.resolve(name))
        if source is None:
            raise self.missing(name)
        return source

    @property
    def files(self) -> Mapping[str, bytes]:
        return self._files

    @property
    def metadata(self) -> Mapping[str, str]:
        return self._metadata

    @property
    def aliases(self) -> Mapping[str, str]:
        return self._aliases

    @property
    def where(self) -> str:
        return self._where


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
        sources[new] = Source(checkpoint, name)
    aliases = {
        alias: target
        for old, kept in checkpoint.aliases.items()
        if (alias := rename(old)) is not None and (target := rename(kept)) is not None and alias not in sources
    }
    return View(
        sources,
        files=checkpoint.files,
        metadata={k: v for k, v in checkpoint.metadata.items() if k not in checkpoint.aliases},
        aliases=aliases,
        where=checkpoint.where,
    )


def overlaid(base: Checkpoint, top: Checkpoint) -> View:
    """The base's tensors, with those that `top` has too taken from `top`."""
    own = set(top.names())
    sources = {n: Source(top if n in own else base, n) for n in base.names()}
    sources |= {n: Source(top, n) for n in top.names() if n not in sources}
    return View(
        sources,
        files=base.files,
        metadata=base.metadata,
        aliases={k: v for k, v in base.aliases.items() if k not in own},
        where=base.where,
    )


# Where layer numbers stand in names, and which key of the config counts them.
LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "depth")
LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?|encoder\.layer)\.(\d+)(?=\.)")


@dataclass(frozen=True, slots=True)
class Slice:
    """Layers `start` to `stop` (not included) of a checkpoint."""

    checkpoint: Checkpoint
    start: int
    stop: int


def restacked(slices: Sequence[Slice]) -> View:
    """A new stack of layers from slices of one or more checkpoints, with the config's layer count rewritten.

    Tensors outside the layers come from the first slice's checkpoint, except those that stand behind the stack in
    reading order, which the last slice's checkpoint gives as well when it has them (mergekit's passthrough).

    Raises:
        CheckpointError: no layers are found, or a slice asks for layers that are not there.
    """
    if not slices:
        raise CheckpointError("no slices", expected="at least one")
    first = slices[0].checkpoint
    sources: dict[str, Source] = {n: Source(first, n) for n in first.names() if LAYER.search(n) is None}
    at = 0
    for part in slices:
        layers: dict[int, list[str]] = {}
        for name in part.checkpoint.names():
            match = LAYER.search(name)
            if match:
                layers.setdefault(int(match.group(1)), []).append(name)
        for number in range(part.start, part.stop):
            if number not in layers:
                raise CheckpointError(
                    "no such layer",
                    where=part.checkpoint.where,
                    got=f"layer {number}",
                    expected=f"0 to {max(layers, default=-1)}",
                )
            for name in layers[number]:
                match = LAYER.search(name)
                assert match is not None  # found above
                new = f"{name[: match.start(1)]}{at}{name[match.end(1) :]}"
                sources[new] = Source(part.checkpoint, name)
            at += 1
    return View(
        sources,
        files=_with_config(first, {key: at for key in LAYER_COUNTS if key in first.config}),
        metadata=first.metadata,
        aliases=first.aliases,
        where=" + ".join(f"{s.checkpoint.where}[{s.start}:{s.stop}]" for s in slices),
    )


def _with_config(checkpoint: Checkpoint, changes: Mapping[str, Any]) -> Mapping[str, bytes]:
    if not changes:
        return checkpoint.files
    config = {**checkpoint.config, **changes}
    for key in ("layer_types", "attention_layers"):
        if isinstance(config.get(key), list) and len(set(map(str, config[key]))) == 1:
            config[key] = config[key][:1] * next(iter(changes.values()))
    return {**checkpoint.files, "config.json": json.dumps(config, indent=2).encode() + b"\n"}
