"""What a merge takes from which side, name by name; and what it cannot decide.

See `merging` for the table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import NamedTuple

from ..checkpoint.disk import INDEX
from ..checkpoint.floats import FLOATS
from ..errors import ConflictError, StoreError
from .blending import Report
from .parts import Part, label
from .trees import Plain, Tree

BASE, OURS, THEIRS, FUSED = range(4)
RECORD = "cofuse.json"  # how the tensors beside it were made: it belongs to no others
_TIED = "tied to "  # before a name: what a tied name holds instead of an id


class Settled(NamedTuple):
    """Globs over names of tensors and files: which side is taken where both changed them, instead of fusing or refusing."""

    ours: tuple[str, ...] = ()
    theirs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Conflict:
    """What both sides changed and what cannot be fused: a tensor's or file's name, and what each did with it."""

    name: str
    ours: str
    theirs: str

    def __str__(self) -> str:
        return f"{self.name}: {self.ours} by ours, {self.theirs} by theirs"


def agreed(base: object, ours: object, theirs: object) -> int | None:
    """The side whose value is the result by the table above; None where both changed it.

    >>> agreed("a", "b", "a"), agreed("a", "a", "b"), agreed(None, "b", "b"), agreed("a", "b", None)
    (1, 2, 1, None)
    """
    if theirs in (ours, base):
        return OURS
    return THEIRS if ours == base else None


class Choice:
    """Decides name by name, and remembers what could not be decided."""

    def __init__(self, settled: Settled) -> None:
        self.report = Report()
        self._settled = settled
        self._used: set[str] = set()
        self._conflicts: list[Conflict] = []

    def tensors(self, group: str, parts: Sequence[Part | None]) -> dict[str, int]:
        """The side that gives each tensor and tie of a part; names that are gone are left out."""
        before = label(group, "")
        values = [held_by(part) for part in parts]

        def fits(name: str) -> bool:
            if any(name not in value or tied_to(value[name]) for value in values):
                return False
            specs = {part.spec(name) for part in parts if part is not None}
            return len(specs) == 1 and next(iter(specs)).dtype in FLOATS

        def did(name: str, side: int) -> str:
            return _did(name, parts[BASE], parts[side])

        found = self._pick(values, before, fits, did)
        ties = {name: tie for name, side in found.items() if side != FUSED and (tie := tied_to(values[side][name]))}
        known = {conflict.name for conflict in self._conflicts}
        self._conflicts += [
            Conflict(before + name, did(name, OURS), f"{kept} {did(kept, THEIRS)}")
            for name, kept in ties.items()
            if (kept not in found or kept in ties) and before + kept not in known
        ]
        return found

    def files(self, trees: Sequence[Tree]) -> dict[str, Plain]:
        """Files other than weights, their index, and the record of a fuse, which follow the tensors."""
        plain = [
            {p: e for p, e in tree.files.items() if isinstance(e, Plain) and p not in (*INDEX, RECORD)}
            for tree in trees
        ]

        def did(path: str, side: int) -> str:
            return "added" if path not in plain[BASE] else "changed" if path in plain[side] else "removed"

        ids = [{path: entry.id for path, entry in held.items()} for held in plain]
        return {path: plain[side][path] for path, side in self._pick(ids, "", lambda _: False, did).items()}

    def _pick(
        self,
        values: Sequence[Mapping[str, str]],
        before: str,
        fits: Callable[[str], bool],
        did: Callable[[str, int], str],
    ) -> dict[str, int]:
        base, ours, theirs = values
        found: dict[str, int] = {}
        for name in dict.fromkeys([*ours, *theirs, *base]):
            b, o, t = base.get(name), ours.get(name), theirs.get(name)
            side = agreed(b, o, t)
            if side is None:
                side = self._asked(before + name)
                if side is None and fits(name):
                    side = FUSED
                    self.report.fused.append(before + name)
                if side is None:
                    self._conflicts.append(Conflict(before + name, did(name, OURS), did(name, THEIRS)))
                    continue
            elif o != t:
                self.report.ours += side == OURS
                self.report.theirs += side == THEIRS
            if side == FUSED or name in values[side]:
                found[name] = side
        return found

    def _asked(self, name: str) -> int | None:
        fitting = {
            side: [glob for glob in globs if fnmatchcase(name, glob)]
            for side, globs in ((OURS, self._settled.ours), (THEIRS, self._settled.theirs))
        }
        self._used.update(fitting[OURS], fitting[THEIRS])
        if fitting[OURS] and fitting[THEIRS]:
            raise StoreError(
                "settled both ways", where=name, got=f"ours by {fitting[OURS][0]}, theirs by {fitting[THEIRS][0]}"
            )
        for side, word in ((OURS, "ours"), (THEIRS, "theirs")):
            if fitting[side]:
                self.report.settled[name] = word
                return side
        return None

    def refuse(self) -> None:
        """Tell of everything that is left to be decided."""
        idle = [glob for glob in (*self._settled.ours, *self._settled.theirs) if glob not in self._used]
        if idle:
            raise StoreError(
                "nothing that both sides changed has such a name",
                got=idle[0],
                hint="leave it out, or look at what there is: without --ours and --theirs, all conflicts are listed",
            )
        if self._conflicts:
            raise ConflictError(self._conflicts)


def held_by(part: Part | None) -> dict[str, str]:
    """What each name holds: the id of a tensor, or the name it is tied to."""
    if part is None:
        return {}
    return {**part.tensor_ids(), **{name: _TIED + kept for name, kept in part.aliases.items()}}


def tied_to(value: str) -> str | None:
    """The name that a value of `held_by` is tied to; None where it is an id."""
    return value.removeprefix(_TIED) if value.startswith(_TIED) else None


def _did(name: str, base: Part | None, side: Part | None) -> str:
    """What a side did with a tensor, in words."""
    before = None if base is None or name not in base else base
    after = None if side is None or name not in side else side
    if after is None:
        return "removed" if before is not None else "left out"
    spec = after.spec(name)
    said = f"{spec.dtype} {list(spec.shape)}"
    if name in after.aliases:
        return f"{_TIED}{after.aliases[name]}"
    if before is None:
        return f"added as {said}"
    if name in before.aliases:
        return f"untied, as {said}"
    was = before.spec(name)
    if was.shape != spec.shape:
        return f"reshaped from {list(was.shape)} to {list(spec.shape)}"
    if was.dtype != spec.dtype:
        return f"cast from {was.dtype} to {spec.dtype}"
    if before.tensor_ids()[name] == after.tensor_ids()[name]:
        return "left alone"
    return "changed" if spec.dtype in FLOATS else f"changed ({spec.dtype} is never averaged)"
