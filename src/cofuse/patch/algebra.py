"""Patches of patches: one that does what two in turn do, and one that undoes one.

Without the base this works where the change itself says enough: new values after new values, differences after
differences, anything before a tensor that is whole in the second. With it, it always works; changes of low rank stay of
low rank (ranks add up), with the error that rounding twice or back leaves.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..checkpoint import Checkpoint, TensorSpec
from ..checkpoint.bitcode import width_of
from ..errors import PatchError
from ..progress import SILENT, Progress
from .applied import Applied, apply
from .edits import SAME, Coded, Edit, coded, composed, inverse
from .making import Pair, Way, make
from .manifest import Change, Manifest, chunk_range, chunks_of, told, up
from .patch import Patch
from .products import Product
from .writing import Draft


def compose(
    first: Patch,
    second: Patch,
    out: str | Path,
    *,
    base: Checkpoint | None = None,
    threads: int | None = None,
    progress: Progress = SILENT,
) -> Patch:
    """The patch that does what `first` and then `second` do.

    Args:
        first: the earlier one.
        second: the later one; it belongs to what the first gives.
        out: the file to write.
        base: what the first belongs to, where the patches alone do not say enough.
        threads: how many; the processor's number when None.
        progress: told of every chunk.

    Raises:
        PatchError: the second belongs to something else; or the base is needed, and why.
    """
    if first.result != second.base:
        raise PatchError(
            "the second patch does not start where the first ends",
            where=second.path,
            got=f"content id {second.base}",
            expected=f"content id {first.result}, what {first.path} gives",
        )
    if base is not None:
        middle = apply(base, first)
        way = _Joined(first, second, told(f"{first.manifest.made}; then {second.manifest.made}"))
        return make(base, Applied(middle, second), out, way, threads=threads, progress=progress)
    with Draft(out) as draft:
        tensors = {name: _joined(draft, name, first, second) for name in _names(first, second)}
        return draft.finish(_joined_manifest(draft, first, second, tensors))


def invert(
    patch: Patch,
    out: str | Path,
    *,
    base: Checkpoint | None = None,
    threads: int | None = None,
    progress: Progress = SILENT,
) -> Patch:
    """The patch that undoes one: from what it gives back to its base.

    Args:
        patch: the change.
        out: the file to write.
        base: what the patch belongs to, where the patch alone does not say what was there: new values, products, tensors
            and files that come or go.
        threads: how many; the processor's number when None.
        progress: told of every chunk.

    Raises:
        PatchError: the base is needed, and why.
    """
    words = told(f"back from: {patch.manifest.made}")
    if base is not None:
        way = _Back(patch, words)
        return make(apply(base, patch), base, out, way, threads=threads, progress=progress)
    said = patch.manifest
    for what, found in {
        "says what tensors become, not what they were": [n for n, c in said.tensors.items() if c.how == "new"],
        "adds products, and what that rounds away is lost": [n for n, c in said.tensors.items() if c.how == "product"],
        "removes tensors": said.removed,
        "changes files": [*said.files, *said.removed_files],
        "changes tied names or metadata": ["metadata"] * (said.aliases is not None or said.metadata is not None),
    }.items():
        if found:
            raise _needs_base(patch, what, found[0])
    with Draft(out) as draft:
        for name, change in said.tensors.items():
            for number in chunks_of(change.spec):
                edit = patch.edit(name, number)
                if edit is None:
                    continue
                undone = inverse(edit)
                if undone is None:
                    raise _needs_base(patch, "says what values become, not what they were", name)
                draft.add(name, number, _coded(undone, change.spec, number))
        changed = draft.changed()
        kept = {
            n: c.model_copy(update={"left": 0.0, "most": 0.0, **({"norm": None} if c.left else {})})
            for n, c in said.tensors.items()
            if n in changed
        }
        return draft.finish(Manifest(base=said.result, tuned=said.base, result=said.base, made=words, tensors=kept))


def _needs_base(patch: Patch, what: str, got: str) -> PatchError:
    return PatchError(
        f"the base is needed: the patch {what}",
        where=patch.path,
        got=got,
        hint="give the base it belongs to (base=...)",
    )


def _coded(edit: Edit, spec: TensorSpec, number: int) -> Coded:
    start, stop = chunk_range(spec, number)
    return coded(edit, (stop - start) // width_of(spec.dtype)) if len(edit.values) else SAME


# Two in turn, without the base


def _names(first: Patch, second: Patch) -> list[str]:
    gone = set(second.manifest.removed)
    return sorted({*second.manifest.tensors, *(n for n in first.manifest.tensors if n not in gone)})


def _joined(draft: Draft, name: str, first: Patch, second: Patch) -> Change:
    one, two = first.change(name), second.change(name)
    for patch, change in ((first, one), (second, two)):
        if change is not None and change.how == "product":
            raise _needs_base(patch, "adds products, and how that rounds depends on it", name)
    if one is None or two is None or two.how == "new":
        patch, change = (first, one) if two is None else (second, two)
        assert change is not None  # the name is one of theirs
        for number in chunks_of(change.spec):
            draft.add(name, number, patch.coded(name, number))
        left, most = (0.0, 0.0) if two is None else (two.left, two.most)
        return change.model_copy(update={"norm": None, "left": left, "most": most})
    if one.spec != two.spec:
        raise second.damaged("it is of another shape than what it belongs to", name)
    for number in chunks_of(two.spec):
        before, after = first.edit(name, number), second.edit(name, number)
        made: Edit | None = before or after
        if before is not None and after is not None:
            start, stop = chunk_range(two.spec, number)
            made = composed(before, after, (stop - start) // width_of(two.dtype), two.dtype)
            if made is None:
                raise _needs_base(second, f"and {first.path.name} say in two ways what becomes of values", name)
        draft.add(name, number, SAME if made is None else _coded(made, two.spec, number))
    return two.model_copy(update={"how": one.how, "norm": None, "base": one.base})


def _joined_manifest(draft: Draft, first: Patch, second: Patch, tensors: dict[str, Change]) -> Manifest:
    one, two = first.manifest, second.manifest
    files = {}
    for patch in (first, second):
        for name in patch.manifest.files:
            if patch is second or (name not in two.removed_files and name not in two.files):
                files[name] = patch.file(name)
    draft.add_files(files)
    changed = draft.changed()
    return Manifest(
        base=one.base,
        tuned=two.tuned,
        result=two.result,
        made=told(f"{one.made}; then {two.made}"),
        tensors={n: c for n, c in tensors.items() if c.how == "new" or c.left or n in changed},
        removed=tuple(sorted({*one.removed, *two.removed} - set(tensors))),
        aliases=one.aliases if two.aliases is None else two.aliases,
        metadata=one.metadata if two.metadata is None else two.metadata,
        files={name: len(data) for name, data in files.items()},
        removed_files=tuple(sorted({*one.removed_files, *two.removed_files} - set(files))),
    )


# With it


@dataclass(frozen=True)
class _Joined(Way):
    """Products of both patches side by side; all else as it comes out."""

    first: Patch
    second: Patch
    words: str

    def says(self) -> str:
        return self.words

    def product(self, pair: Pair, name: str) -> Product | None:
        changes = [(p, p.change(name)) for p in (self.first, self.second)]
        if not all(change is None or change.how == "product" for _, change in changes):
            return None
        found = [patch.product(name) for patch, change in changes if change is not None]
        if len(found) == 1:
            return found[0]
        one, two = found
        alike = (one.scale, one.dtype) == (two.scale, two.dtype)
        scales = (1.0, 1.0) if alike else (one.scale, two.scale)
        b = np.concatenate([one.b * np.float32(scales[0]), two.b * np.float32(scales[1])], axis=1)
        return Product(np.concatenate([one.a, two.a]), b, one.scale if alike else 1.0, one.dtype if alike else "F32")

    def settled(self, manifest: Manifest) -> Manifest:
        """What the second left out of its tuned model is still left out, and what rounding adds comes on top."""
        tensors = dict(manifest.tensors)
        for name, change in self.second.manifest.tensors.items():
            if change.left:
                own = tensors.get(name, change.model_copy(update={"how": "edit", "left": 0.0, "most": 0.0}))
                bounds = {"left": up(own.left + change.left), "most": up(own.most + change.most), "norm": None}
                tensors[name] = own.model_copy(update=bounds)
        return manifest.model_copy(update={"tuned": self.second.manifest.tuned, "tensors": tensors})


@dataclass(frozen=True)
class _Back(Way):
    """A patch's products, taken away again."""

    patch: Patch
    words: str

    def says(self) -> str:
        return self.words

    def product(self, pair: Pair, name: str) -> Product | None:
        change = self.patch.change(name)
        if change is None or change.how != "product":
            return None
        product = self.patch.product(name)
        return Product(product.a, product.b, -product.scale, product.dtype)
