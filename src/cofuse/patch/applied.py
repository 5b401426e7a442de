"""A patch on its base: a checkpoint that is computed as it is read."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping

from ..checkpoint import Checkpoint, TensorSpec, content_id
from ..checkpoint.bitcode import as_bits
from ..errors import PatchError
from .edits import PUT
from .manifest import chunk_range
from .patch import Patch
from .products import Product

_PRODUCTS = 4  # kept in memory


def apply(base: Checkpoint, patch: Patch, *, anywhere: bool = False) -> Applied:
    """A checkpoint with a patch on it; nothing is read of the patch's bytes until something is read of the result.

    Args:
        base: what the patch was made on.
        patch: the change.
        anywhere: take another base with the same names, dtypes and shapes where the patch changes something. What comes
            out is then approximate: new values are put, products added, wherever they were meant to go.

    Raises:
        PatchError: the base is not the patch's; or, with `anywhere`, the patch does not fit it, or holds differences of
            bits, which mean something on its own base alone.

    The bits of the result depend on nothing but the base and the patch.
    """
    identity = content_id(base)
    if identity != patch.base and not anywhere:
        raise PatchError(
            "the patch belongs to another base",
            where=patch.path,
            got=f"content id {identity} ({base.where})",
            expected=f"content id {patch.base}",
            hint="give the base it was made on; --any-base (anywhere=True) tries it on another one, approximately",
        )
    _check_fits(base, patch)
    if identity != patch.base:
        _check_portable(patch)
    return Applied(base, patch)


class Applied(Checkpoint):
    """See `apply`, which checks that base and patch belong together."""

    def __init__(self, base: Checkpoint, patch: Patch) -> None:
        self.base = base
        self.patch = patch
        manifest = patch.manifest
        gone = set(manifest.removed)
        new = [name for name, change in sorted(manifest.tensors.items()) if change.how == "new"]
        self._names = tuple(dict.fromkeys([*(n for n in base.names() if n not in gone), *new]))
        kept = set(self._names)
        aliases = base.aliases if manifest.aliases is None else manifest.aliases
        self._aliases = {alias: name for alias, name in aliases.items() if name in kept and alias not in kept}
        self._metadata = base.metadata if manifest.metadata is None else manifest.metadata
        self._where = f"{patch.path} on {base.where}"
        self._files = _Files(base.files, patch)
        self._products: dict[str, Product] = {}
        self._lock = threading.Lock()
        self._last = threading.local()  # each thread's last chunk: whoever reads small stretches reads on

    def names(self) -> tuple[str, ...]:
        return self._names

    def spec(self, name: str) -> TensorSpec:
        name = self.resolve(name)
        change = self.patch.change(name)
        if change is not None:
            return change.spec
        if name not in self._known:
            raise self.missing(name)
        return self.base.spec(name)

    def read_bytes(self, name: str, start: int = 0, stop: int | None = None) -> bytes | bytearray | memoryview:
        start, stop = self.check_range(name, start, stop)
        name = self.resolve(name)
        change = self.patch.change(name)
        if change is None or start == stop:
            return self.base.read_bytes(name, start, stop) if change is None else b""
        out = bytearray(stop - start)
        unit = 8  # bytes; no element is larger
        if change.how == "product":
            first, last = start - start % unit, min(stop + -stop % unit, change.spec.nbytes)
            new = self._product(name).play(self.base.read_bytes(name, first, last), change.spec, first)
            return new[start - first : stop - first]
        size = chunk_range(change.spec, 0)[1]
        for number in range(start // size, (stop - 1) // size + 1):
            first, last = chunk_range(change.spec, number)
            a, b = max(start, first), min(stop, last)
            out[a - start : b - start] = self._stretch(name, number, a - first, b - first)
        return out

    def _stretch(self, name: str, number: int, start: int, stop: int) -> bytes | bytearray | memoryview:
        """Bytes of one chunk."""
        key, data = getattr(self._last, "chunk", (None, b""))
        if key == (name, number):
            return memoryview(data)[start:stop]
        spec, new = self.spec(name), self.patch.manifest.tensors[name].how == "new"
        first, last = chunk_range(spec, number)
        edit = self.patch.edit(name, number)
        if edit is None:
            if new:
                raise self.patch.damaged("nothing is said of a new tensor's bytes", name)
            return self.base.read_bytes(name, first + start, first + stop)
        whole = edit.what == PUT and edit.positions is None
        if new and not whole:
            raise self.patch.damaged("a new tensor is not whole", name)
        old = edit.values if whole else as_bits(self.base.read_bytes(name, first, last), spec.dtype)
        data = edit.play(old, spec.dtype).tobytes()
        self._last.chunk = (name, number), data
        return memoryview(data)[start:stop]

    def _product(self, name: str) -> Product:
        with self._lock:
            if name not in self._products:
                # A few: factors are small beside their tensors, and tensors are read one after another.
                if len(self._products) >= _PRODUCTS:
                    self._products.pop(next(iter(self._products)))
                self._products[name] = self.patch.product(name)
            return self._products[name]


class _Files(Mapping[str, bytes]):
    """The base's small files, with those that the patch brings."""

    def __init__(self, base: Mapping[str, bytes], patch: Patch) -> None:
        self._base, self._patch = base, patch
        manifest = patch.manifest
        self._names = sorted((set(base) - set(manifest.removed_files)) | set(manifest.files))

    def __getitem__(self, name: str) -> bytes:
        if name in self._patch.manifest.files:
            return self._patch.file(name)
        if name in self._patch.manifest.removed_files:
            raise KeyError(name)
        return self._base[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _check_fits(base: Checkpoint, patch: Patch) -> None:
    names = set(base.names())
    # What is removed need not be there: of two patches in turn, the first may have brought it.
    for name, change in patch.manifest.tensors.items():
        if change.how == "new":
            continue
        found = base.spec(name) if name in names else None
        if found != change.spec:
            raise PatchError(
                "the patch does not fit this base",
                where=f"{base.where}: {name}",
                got="no such tensor" if found is None else f"{found.dtype} {list(found.shape)}",
                expected=f"{change.dtype} {list(change.shape)}",
            )


def _check_portable(patch: Patch) -> None:
    for name, change in patch.manifest.tensors.items():
        if change.how == "edit" and patch.whats(name) - {PUT}:
            raise PatchError(
                "the patch holds differences of bits, which mean something on its own base alone",
                where=f"{patch.path}: {name}",
                hint="make it with --values, which keeps new values, or with --rank",
            )
