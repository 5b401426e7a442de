"""Versions of a repository as pages show them: their files, and what stands in an address."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...store.trees import Weights
from ..database import Repository
from ..faults import NoRevision
from ..hub import Hub
from ..huggingface.versions import DEFAULT, VERSIONS, Version

_DEEP = 8  # parts that a ref's name may have


@dataclass(frozen=True, slots=True)
class Row:
    """A file, or a folder, of a version."""

    name: str
    path: str
    size: int
    tensors: int | None
    folder: bool


def latest(hub: Hub, repository: Repository) -> Version | None:
    """The tip of main, or of the first branch there is; None where nothing is there yet."""
    try:
        return VERSIONS.get(hub, repository, DEFAULT)
    except NoRevision:
        first = next(iter(sorted(hub.store(repository).branches())), None)
        return None if first is None else VERSIONS.get(hub, repository, f"refs/heads/{first}")


def split(hub: Hub, repository: Repository, rest: str) -> tuple[str, Version, str]:
    """A revision, its version and what follows, from a path: a ref's name may have slashes.

    Raises:
        NoRevision: it names nothing.
    """
    parts = rest.split("/")
    for count in range(1, min(len(parts), _DEEP) + 1):
        revision = "/".join(parts[:count])
        try:
            return revision, VERSIONS.get(hub, repository, revision), "/".join(parts[count:])
        except NoRevision:
            continue
    raise NoRevision("no such branch, tag or commit", got=ascii(parts[0][:200]))


def rows(version: Version, below: str) -> Sequence[Row]:
    """What is in a folder of a version, folders first; empty where there is no such folder."""
    prefix = f"{below}/" if below else ""
    files: list[Row] = []
    folders: dict[str, int] = {}
    for path, entry in version.tree.files.items():
        if not path.startswith(prefix):
            continue
        name, slash, _ = path[len(prefix) :].partition("/")
        if slash:
            folders[name] = folders.get(name, 0) + entry.size
        else:
            tensors = len(entry.tensors) if isinstance(entry, Weights) else None
            files.append(Row(name, path, entry.size, tensors, False))
    made = [Row(name, prefix + name, size, None, True) for name, size in folders.items()]
    return sorted(made, key=lambda r: r.name) + sorted(files, key=lambda r: r.name)
