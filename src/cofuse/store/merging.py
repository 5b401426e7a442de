"""Three-way merging of trees: what one side changed is taken, what both changed is fused, the rest is a conflict.

    base  ours  theirs    result
    a     b     a         b           one side changed it: that side's
    a     a     b         b
    a     b     b         b           both did the same
    a     b     c         fused       by the method, with the merge base as its base
    -     b     c         conflict    as is all else that both changed: shapes, dtypes, integers, ties, files

Tensors, ties and files follow this table one by one. Nothing is read but headers and what is fused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from ..checkpoint import Checkpoint, Header, Source, TensorSpec, build_header
from ..checkpoint.disk import INDEX, aliases_in
from ..errors import CofuseError, StoreError
from .blending import Blend, Excerpt, Merged, Report
from .deciding import FUSED, OURS, RECORD, THEIRS, Choice, Settled, agreed, held_by, tied_to
from .parts import Part, Trees
from .trees import Plain, Tree, Weights


class Side(NamedTuple):
    """One of the three trees: what errors call it, and the tree."""

    name: str
    tree: Tree


# Gives the fused checkpoint of base, ours and theirs, which hold nothing but what both sides changed.
Fuse = Callable[[Checkpoint, Checkpoint, Checkpoint], Checkpoint]


def three_way(trees: Trees, base: Side, ours: Side, theirs: Side, fuse: Fuse, settled: Settled | None = None) -> Merged:
    """Merge two trees that come from one; lazy: only headers are read.

    The result's files, with their raw headers, are laid out as ours, or else as theirs: the first whose tensors have the
    names, dtypes and shapes of the result's; one file where neither has. Metadata goes with the layout. A fuse's record
    (`cofuse.json`) stays only beside the very tensors that it is about.

    Args:
        trees: reads them.
        base: what both come from.
        ours: what is gone on from.
        theirs: what is brought in.
        fuse: makes one of what both changed, and sees nothing else: a method that looks at whole models looks at that.
        settled: which side to take for what.

    Raises:
        ConflictError: lists everything that can be neither taken nor fused.
        StoreError: a glob of `settled` fits nothing that both changed, or the files do not fit beside each other.
        FuseError: the method does not take the two sides.
    """
    sides = (base, ours, theirs)
    parts = [trees.parts(side.tree, side.name) for side in sides]
    choice = Choice(settled or Settled())
    taken: dict[str, dict[str, int]] = {}
    for group in sorted({group for held in parts for group in held}):
        taken[group] = choice.tensors(group, [held.get(group) for held in parts])
    files = choice.files([side.tree for side in sides])
    choice.refuse()
    blends: dict[str, Blend] = {}
    for group, names in taken.items():
        three = [held.get(group) for held in parts]
        order = _layouts(group, three, sides)
        blend, layout = _blend(group, three, names, order, fuse)
        if blend.headers:
            blends[group] = blend
        if group == "" and layout is not None:
            files |= _index(sides[layout])
        if layout in order and len(order) > 1:
            _tell_of_metadata(three, layout, choice.report)
    files |= _record(sides, [held.get("") for held in parts], taken.get("", {}), choice.report)
    _check_fit(trees, files, blends)
    return Merged(files, blends, choice.report)


def _specs(part: Part) -> dict[str, TensorSpec]:
    return {name: part.spec(name) for name in part.names()}


def _index(side: Side) -> dict[str, Plain]:
    return {path: entry for path in INDEX if isinstance(entry := side.tree.files.get(path), Plain)}


def _layouts(group: str, parts: Sequence[Part | None], sides: Sequence[Side]) -> list[int]:
    """The sides whose files may be taken for the result, the first first."""
    held = [
        (part and part.weights, _index(side) if group == "" else {}) for part, side in zip(parts, sides, strict=True)
    ]
    # Where the files as such were changed by one side alone they are that side's, down to the spaces in a header.
    whole = agreed(*held)
    return [OURS, THEIRS] if whole is None else [whole]


def _blend(
    group: str, parts: Sequence[Part | None], taken: Mapping[str, int], order: Iterable[int], fuse: Fuse
) -> tuple[Blend, int | None]:
    """A part of the result, and the side that gives its layout."""
    held = [held_by(part) for part in parts]
    ties = {name: tie for name, side in taken.items() if side != FUSED and (tie := tied_to(held[side][name]))}
    both = [name for name, side in taken.items() if side == FUSED]
    fused = fuse(*(_only(part, both) for part in parts)) if both else None
    sources: dict[str, Source] = {}
    for name, side in taken.items():
        giver = fused if side == FUSED else parts[side]
        if giver is not None and name not in ties:
            sources[name] = Source(giver, name)
    where = "the merge" + (f" of {group}" if group else "")
    if not sources:
        return Blend(sources, ties, {}, where), None
    specs = {name: source.checkpoint.spec(name) for name, source in sources.items()}
    for side in order:
        part = parts[side]
        if part is not None and _specs(part) == specs:
            headers = part.headers
            if dict(part.aliases) != ties:
                headers = {path: _retied(header, ties) for path, header in headers.items()}
            return Blend(sources, ties, headers, where), side
    part = next(part for part in (parts[OURS], parts[THEIRS]) if part is not None)
    path = next(iter(part.weights)) if len(part.weights) == 1 else group or "model.safetensors"
    return Blend(sources, ties, {path: build_header(specs, {**part.metadata, **ties})}, where), None


def _only(part: Part | None, names: Iterable[str]) -> Excerpt:
    assert part is not None  # what is fused stands in all three
    return Excerpt(part, names)


def _retied(header: Header, ties: Mapping[str, str]) -> Header:
    old = aliases_in(header)
    own = {k: v for k, v in header.metadata.items() if k not in old}
    specs = {name: (entry.dtype, entry.shape) for name, entry in header.entries.items()}
    return build_header(specs, {**own, **{name: kept for name, kept in ties.items() if kept in specs}})


def _tell_of_metadata(parts: Sequence[Part | None], layout: int, report: Report) -> None:
    base, ours, theirs = ({} if part is None else dict(part.metadata) for part in parts)
    other, mine = (theirs, ours) if layout == OURS else (ours, theirs)
    if other not in (base, mine):
        report.notes.append(f"the other side's change of the header's metadata is left out: {', '.join(sorted(other))}")


def _record(
    sides: Sequence[Side], parts: Sequence[Part | None], taken: Mapping[str, int], report: Report
) -> dict[str, Plain]:
    """The record of the side whose tensors are the result's, if there is one."""
    entries = [side.tree.files.get(RECORD) for side in sides]
    held = [held_by(part) for part in parts]
    result = {name: "" if side == FUSED else held[side][name] for name, side in taken.items()}
    side = agreed(*entries)
    wanted = [k for k in ((OURS, THEIRS) if side is None else (side,)) if entries[k] is not None]
    for k in wanted:
        if held[k] == result and isinstance(entry := entries[k], Plain):
            return {RECORD: entry}
    if wanted:
        report.notes.append(f"{RECORD} is left out: it says how other tensors were made")
    return {}


def _check_fit(trees: Trees, files: Mapping[str, Plain], blends: Mapping[str, Blend]) -> None:
    """Refuse files of the two sides that would not open as what was merged when they stand beside each other."""
    paths = [path for blend in blends.values() for path in blend.headers]
    twice = [path for path in paths if path in files or paths.count(path) > 1]
    weights = {path: Weights("", 0, ()) for path in paths}
    main = sorted(blends[""].headers) if "" in blends else []
    try:
        fit = not twice and trees.main({**files, **weights}) == main
    except CofuseError:
        fit = False
    if not fit:
        raise StoreError(
            "the sides keep their weights in files that do not fit beside each other",
            got=", ".join((twice or sorted(paths))[:5]),
            hint="bring one of them into the other's files first, commit that, then merge",
        )
