"""Small models and histories that the tests of merging share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from cofuse.checkpoint import Memory
from cofuse.store import Commit, Store

CONFIG = b'{"model_type": "none"}'


def model(
    tensors: Mapping[str, torch.Tensor | float],
    files: Mapping[str, bytes] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Memory:
    """A checkpoint; a number stands for a small tensor filled with it."""
    filled = {n: v if isinstance(v, torch.Tensor) else torch.full((2, 3), float(v)) for n, v in tensors.items()}
    return Memory(filled, files={"config.json": CONFIG} if files is None else files, metadata=metadata)


def fork(store: Store, base: Memory, ours: Memory, theirs: Memory) -> tuple[Commit, Commit, Commit]:
    """A base on `main`, then one version on it on `main` and one on `side`."""
    first = store.commit(base, message="base")
    store.branch("side")
    return first, store.commit(ours, message="ours"), store.commit(theirs, message="theirs", branch="side")


def values(store: Store, rev: str = "main") -> dict[str, list[float]]:
    """The first value of each tensor, and the tied names' too."""
    opened = store.checkpoint(rev)
    return {name: opened.read(name).flatten()[0].item() for name in (*opened.names(), *opened.aliases)}


@dataclass
class Dag:
    """Commits that stand in no store."""

    nodes: dict[str, "Bare"] = field(default_factory=dict)

    def add(self, name: str, parents: Sequence[str], time_ns: int) -> None:
        self.nodes[name] = Bare(name, tuple(parents), time_ns)

    def load(self, name: str) -> "Bare":
        return self.nodes[name]


@dataclass(frozen=True)
class Bare:
    id: str
    parents: tuple[str, ...]
    time_ns: int
