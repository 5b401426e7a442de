"""What a patch says of itself: base and result, and of every tensor and file what becomes of it.

JSON in one spelling (keys sorted, no spaces, ASCII), in one zstd frame. Written down in docs/formats/patch.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from ..canonical import canonical
from ..checkpoint import CHUNK, TensorSpec
from ..checkpoint.dtypes import DTYPES
from ..checkpoint.frames import frame, stated, unframe
from ..checkpoint.header import MAX_COUNT, MAX_RANK, MAX_TENSORS, check_name
from ..document import Document
from ..errors import PatchError

MAX_MANIFEST = 16 * 1024 * 1024  # bytes of JSON
MAX_FILE = 64 * 1024 * 1024  # bytes of a small file
MAX_ROWS = 2**24  # chunks: 64 TiB of tensors

Id = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Size = Annotated[int, Field(strict=True, ge=0, le=2**62)]
Norm = Annotated[float, Field(ge=0)]


class Change(Document):
    """What becomes of one tensor.

    Attributes:
        dtype, shape: of the result.
        how: `edit` of the base's tensor of the same dtype and shape, `new` bits, or `product` added to the base's.
        norm: ||tuned - base||_F, as all of these to four digits, rounded up; None where it is no number, or not known.
        base: ||base||_F.
        left: ||tuned - result||_F: what an approximate patch leaves out.
        most: the largest |tuned - result| of a value.
        rank, scale: of a product: the result is base + scale B A.
        a, b: tensor ids of A [rank, columns] and B [rows, rank].
    """

    dtype: str
    shape: tuple[Size, ...] = Field(max_length=MAX_RANK)
    how: Literal["edit", "new", "product"] = "edit"
    norm: Norm | None = None
    base: Norm | None = None
    left: Norm = 0
    most: Norm = 0
    rank: Size = 0
    scale: float = 1
    a: Id | None = None
    b: Id | None = None

    @property
    def spec(self) -> TensorSpec:
        """Dtype and shape."""
        return TensorSpec(self.dtype, self.shape)


class Manifest(Document):
    """What a patch says of itself.

    Attributes:
        base: the content id of the checkpoint it belongs to.
        tuned: of what it was made from.
        result: of what it gives; equals `tuned` where it is exact.
        made: how it was made, for people.
        tensors: by name; the base's others stay as they are.
        removed: the base's that go.
        aliases, metadata: of the result where they are not the base's.
        files: small files that change or come, with their sizes.
        removed_files: the base's that go.
    """

    base: Id
    tuned: Id
    result: Id
    made: str = Field(max_length=1000)
    tensors: dict[str, Change] = Field(default_factory=dict)
    removed: tuple[str, ...] = ()
    aliases: dict[str, str] | None = None
    metadata: dict[str, str] | None = None
    files: dict[str, Size] = Field(default_factory=dict)
    removed_files: tuple[str, ...] = ()

    @property
    def exact(self) -> bool:
        """Whether it gives what it was made from, bit for bit."""
        return self.tuned == self.result

    def rows(self) -> dict[str, int]:
        """How many chunks each tensor and file has in the patch, in their order there; files after a `/`."""
        tensors = {n: len(chunks_of(c.spec)) for n, c in sorted(self.tensors.items()) if c.how != "product"}
        return {**tensors, **{f"/{name}": -(-size // CHUNK) for name, size in sorted(self.files.items())}}


def chunks_of(spec: TensorSpec) -> range:
    """The numbers of a tensor's chunks."""
    return range(-(-spec.nbytes // CHUNK))


def chunk_range(spec: TensorSpec, number: int) -> tuple[int, int]:
    """First byte of a chunk and the one after its last."""
    return number * CHUNK, min((number + 1) * CHUNK, spec.nbytes)


def encoded(manifest: Manifest, where: object) -> bytes:
    """A manifest as it is written.

    Raises:
        PatchError: it says what no patch can say.
    """
    _check(manifest, where)
    raw = _spelled(manifest)
    if len(raw) > MAX_MANIFEST:
        raise PatchError("too many changes for one patch", got=f"{len(raw):,} bytes", expected=f"{MAX_MANIFEST:,}")
    return frame(raw, 9)


def decoded(stored: bytes, where: object) -> Manifest:
    """The manifest that `encoded` gave.

    Raises:
        PatchError: it gave something else, or what no patch can say.
    """
    try:
        size = stated(stored)
        if not 0 <= size <= MAX_MANIFEST:
            raise ValueError(f"it says that it is {size} bytes; at most {MAX_MANIFEST} are allowed")
        raw = unframe(stored, size)
        manifest = Manifest.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part)[:80] for part in first["loc"])
        raise PatchError("the manifest is wrong", where=where, got=f"{place!a}: {first['msg']}") from None
    except ValueError as error:
        raise PatchError("the manifest cannot be read", where=where, got=error) from None
    if _spelled(manifest) != raw:
        raise PatchError("the manifest is in another spelling", where=where, expected="keys sorted, no spaces, ASCII")
    _check(manifest, where)
    return manifest


def told(words: str) -> str:
    """Words for `made`: on one line, and not too many."""
    return "".join(c if c.isprintable() else " " for c in words)[:900]


def _spelled(manifest: Manifest) -> bytes:
    return canonical(manifest.model_dump(mode="json", exclude_defaults=True))


def _check(manifest: Manifest, where: object) -> None:
    total = 0
    for name, change in manifest.tensors.items():
        check_name(name, where)
        place = f"{where}: {name}"
        if change.dtype not in DTYPES:
            raise PatchError("unknown dtype", where=place, got=ascii(change.dtype[:20]))
        if math.prod(n for n in change.shape if n) * 64 >= MAX_COUNT or change.spec.nbytes < 0:
            raise PatchError("not the shape of a tensor", where=place, got=list(change.shape)[:8])
        product = change.how == "product"
        if product != (change.a is not None and change.b is not None) or product != (change.rank > 0):
            raise PatchError("a product has a rank and two factors", where=place, got=change.how)
        if product and len(change.shape) < 2:
            raise PatchError("a product is added to a matrix", where=place, got=list(change.shape))
    for file, size in manifest.files.items():
        check_file(file, where)
        if size > MAX_FILE:
            raise PatchError("a small file is too large", where=where, got=f"{file}: {size:,} bytes")
    total = sum(manifest.rows().values())
    if total > MAX_ROWS or len(manifest.tensors) > MAX_TENSORS or len(manifest.files) > MAX_TENSORS:
        raise PatchError("too much for one patch", where=where, got=f"{total} chunks")
    both = set(manifest.removed) & set(manifest.tensors) or set(manifest.removed_files) & set(manifest.files)
    if both:
        raise PatchError("both changed and removed", where=where, got=ascii(min(both)[:80]))
    for alias, kept in (manifest.aliases or {}).items():
        check_name(alias, where)
        check_name(kept, where)
    if not manifest.made.isprintable():
        raise PatchError("a manifest holds what cannot be printed", where=where, got=ascii(manifest.made[:80]))


def check_file(name: str, where: object) -> str:
    """Refuse a file's name that leads out of its folder, or hides something in a terminal."""
    if PurePosixPath(name).name != name or name.startswith(".") or not name.isprintable() or len(name.encode()) > 255:
        raise PatchError("not a name for a file", where=where, got=ascii(name[:80]))
    return name


def up(value: float) -> float | None:
    """A number to four digits, rounded up, as what is stated is a bound; None for one that is none.

    >>> up(0.123412), up(0.0), up(math.nan)
    (0.1235, 0.0, None)
    """
    if not math.isfinite(value):
        return None
    near = float(f"{value:.3e}")
    return near if near >= value else float(f"{value * 1.0005:.3e}")


def changed_files(before: Mapping[str, bytes], after: Mapping[str, bytes]) -> tuple[dict[str, bytes], tuple[str, ...]]:
    """Small files that change or come, and the names of those that go."""
    changed = {name: after[name] for name in sorted(after) if name not in before or before[name] != after[name]}
    return changed, tuple(sorted(set(before) - set(after)))
