"""Packing: what a ref points to is kept whole, or one step from it; older versions become deltas against newer ones.

Commits make deltas against what came before, which is all they know; so the newest version, which is read most, is at
the end of the longest chain. Packing turns that round. Of n versions of a tensor, numbered from the oldest,

    version i is kept beside version min(n, i + the largest power of 8 that divides i)

so one after another, with longer strides for every eighth, every sixty-fourth, ...: the chain of the oldest of n versions
has at most 7 (1 + log8 n) deltas, and a version that is added moves 1 + log8 n others. Shorter chains cost bytes where
changes add up (sparse ones, those of low rank), for a stride over d versions holds d changes.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..checkpoint import for_each
from ..progress import SILENT, Progress
from .collecting import needs, read_ref
from .commits import load_commit
from .objects import Objects
from .places import explained
from .refs import Refs
from .rewriting import rewrite
from .trees import Weights, load_header, load_tree

QUICK = 2  # deltas that the reader of what a ref points to may have to follow
SMALL = 4096  # bytes of a tensor: below, nothing is to be gained
_STRIDE = 8


@dataclass(frozen=True, slots=True)
class Packed:
    """What packing did."""

    rewritten: int  # objects
    gained: int  # bytes; negative where quick reading of what is new has cost some


def plan(
    lineages: Iterable[Sequence[str]], tips: Collection[str], present: Mapping[str, str | None]
) -> dict[str, str | None]:
    """Beside what each object is to be kept: None for whole. Objects come after what they are kept beside.

    Args:
        lineages: versions of one tensor, newest first, each a sequence; the most important branch's first. Where
            lineages meet, the first one has what is common.
        tips: what refs point to.
        present: beside what objects are kept now.

    >>> plan([["e", "d", "c", "b", "a"]], {"e"}, {})
    {'e': None, 'd': 'e', 'c': 'd', 'b': 'c', 'a': 'b'}
    >>> plan([["b", "a"], ["c", "a"]], {"b", "c"}, {})  # two branches from one base
    {'b': None, 'a': 'b', 'c': 'b'}
    """
    planned: dict[str, str | None] = {}
    depths: dict[str, int] = {}
    for lineage in lineages:
        versions = list(dict.fromkeys(lineage))
        own = [version for version in versions if version not in planned]
        # What this lineage has in common with one before it says which object of that one is whole.
        root = next((_root(planned, version) for version in versions if version in planned), None)
        for place, version in enumerate(own):
            base = own[max(0, place - _stride(len(own) - place))] if place else root
            now = present.get(version)
            if place == 0 and now in planned and depths.get(now or "", QUICK) < QUICK:
                base = now  # a branch's tip that is quick to read as it is
            depth = 0 if base is None else depths[base] + 1
            if version in tips and depth > QUICK:
                base, depth = _root(planned, own[0]), 1
            planned[version], depths[version] = base, depth
    return planned


def _stride(number: int) -> int:
    """The largest power of 8 that divides a number."""
    stride = 1
    while number % (stride * _STRIDE) == 0:
        stride *= _STRIDE
    return stride


def _root(planned: Mapping[str, str | None], version: str) -> str:
    while (base := planned[version]) is not None:
        version = base
    return version


def pack(objects: Objects, refs: Refs, *, threads: int | None = None, progress: Progress = SILENT) -> Packed:
    """Keep the tensors of all branches as `plan` says. A kill at any point leaves every object readable.

    First what is to be whole, then deltas against these, and so on: no object is ever kept beside one that is still
    kept beside it. What did not become smaller is not tried again until it, or what it would stand beside, is new.

    Raises:
        CorruptError: something that a ref reaches is damaged. What was done so far stays.
        StoreError: the store cannot be written.
    """
    stamp = objects.places.root / "packed"
    with explained(stamp), open(stamp, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return Packed(0, 0)  # somebody is at it
        done = _pack(objects, refs, os.fstat(file.fileno()).st_mtime_ns, threads or os.cpu_count() or 1, progress)
        if done.rewritten:
            os.utime(stamp)
    return done


def _pack(objects: Objects, refs: Refs, since: int, threads: int, progress: Progress) -> Packed:
    lineages, tips = _lineages(objects, refs)
    present = {i: _base(objects, i) for lineage in lineages for i in lineage}
    wanted = plan(lineages, tips, present)
    waves: dict[int, list[tuple[str, str | None]]] = {}
    depths: dict[str | None, int] = {None: -1}
    for version, base in wanted.items():
        depths[version] = depths[base] + 1
        if base != present[version]:
            waves.setdefault(depths[version], []).append((version, base))
    bar = progress.bar("packing", sum(map(len, waves.values())), "objects")
    done: list[tuple[int, int]] = []

    def keep(step: tuple[str, str | None]) -> None:
        version, base = step
        # Whole although it need not be: it has been tried, unless one of the two is new.
        if present[version] or base is None or max(_changed(objects, version), _changed(objects, base)) > since:
            done.append(rewrite(objects, version, base, threads=1))
        bar.advance()

    for _, wave in sorted(waves.items()):
        for_each(keep, wave, threads)
    return Packed(len(done), sum(before - after for before, after in done))


def _lineages(objects: Objects, refs: Refs) -> tuple[list[list[str]], set[str]]:
    """Versions of each tensor along first parents, newest first, branch after branch; and what refs point to."""
    found: list[list[str]] = []
    tips: set[str] = set()
    seen: set[str] = set()
    headers: dict[str, tuple[str, ...]] = {}
    for ref in sorted(refs.names("refs/"), key=lambda ref: (ref != refs.head(), ref)):
        lines: dict[str, list[str]] = {}
        at, more = read_ref(objects, ref), True
        newest = True
        while at is not None and more:
            more = at not in seen  # the commit where a branch left is looked at once more, to find what it came from
            seen.add(at)
            commit = load_commit(objects, at)
            for name, tensor in _tensors(objects, commit.tree, headers):
                lines.setdefault(name, []).append(tensor)
                if newest:
                    tips.add(tensor)
            newest = False
            at = next(iter(commit.parents), None)
        found += lines.values()
    return found, tips


def _tensors(objects: Objects, tree_id: str, headers: dict[str, tuple[str, ...]]) -> Iterator[tuple[str, str]]:
    """Names and ids of the tensors of a tree that are worth it."""
    for path, entry in load_tree(objects, tree_id).files.items():
        if isinstance(entry, Weights):
            if entry.header not in headers:  # most versions share one
                spots = load_header(objects, entry, path).entries.items()
                headers[entry.header] = tuple(name if s.end - s.start >= SMALL else "" for name, s in spots)
            yield from (pair for pair in zip(headers[entry.header], entry.tensors, strict=False) if pair[0])


def _base(objects: Objects, object_id: str) -> str | None:
    return next((base for base, _ in needs(objects, object_id, "part")), None)


def _changed(objects: Objects, object_id: str) -> int:
    try:
        return objects.path(object_id).stat().st_mtime_ns
    except FileNotFoundError:
        return 0
