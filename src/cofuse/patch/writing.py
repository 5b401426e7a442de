"""Writing a patch file: edits go to a nameless file as they are made, then all of it to its place at once."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import numpy as np
from blake3 import blake3

from ..checkpoint import CHUNK, TensorSpec, build_header, replacing, tensor_id_of
from ..checkpoint.bitcode import as_bits
from ..checkpoint.durable import explained, sweep
from ..checkpoint.floats import as_stored
from ..errors import PatchError
from .edits import SAME, Coded, shortest
from .manifest import Manifest, encoded
from .patch import KEY, ROW, VERSION, Patch, check_of
from .products import Product

ENDING = ".patch"


class Draft:
    """A patch that is being made: edits by tensor and chunk, in any order, by any threads.

    Args:
        out: the file to write; its ending is `.patch`.

    Raises:
        PatchError: the ending is another one, or a folder stands there.
    """

    def __init__(self, out: str | Path) -> None:
        self.out = Path(out)
        if self.out.suffix != ENDING or self.out.is_dir():
            raise PatchError("a patch is a file that ends in .patch", where=out)
        with explained(self.out):
            self.out.parent.mkdir(parents=True, exist_ok=True)
            sweep(self.out.parent)
            # Nameless, so that a kill leaves nothing behind.
            self._spool = tempfile.TemporaryFile(dir=self.out.parent)  # noqa: SIM115
        self._places: dict[tuple[str, int], tuple[Coded, int, int]] = {}  # without its bytes; offset, length
        self._factors: dict[str, tuple[TensorSpec, memoryview]] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Draft:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._spool.close()

    def add(self, name: str, number: int, made: Coded) -> None:
        """Keep the edit of a chunk."""
        digest = blake3(made.data).digest(length=8)
        with self._lock, explained(self.out):
            at = self._spool.seek(0, 2)
            self._spool.write(made.data)
            self._places[name, number] = made._replace(data=digest), at, len(made.data)

    def add_files(self, files: Mapping[str, bytes]) -> None:
        """Keep small files whole."""
        for name, data in files.items():
            for number, start in enumerate(range(0, len(data), CHUNK)):
                self.add(f"/{name}", number, shortest(None, as_bits(data[start : start + CHUNK], "U8"), "U8"))

    def add_product(self, name: str, product: Product) -> dict[str, object]:
        """Keep a product; gives what the manifest says of it."""
        said: dict[str, object] = {"how": "product", "rank": product.rank, "scale": product.scale}
        for key, factor in (("a", product.a), ("b", product.b)):
            spec = TensorSpec(product.dtype, factor.shape)
            data = as_stored(factor, product.dtype).data
            self._factors[f"{key}:{name}"] = spec, data
            said[key] = tensor_id_of(spec, (blake3(data[i : i + CHUNK]).digest() for i in range(0, spec.nbytes, CHUNK)))
        return said

    def drop(self, name: str) -> None:
        """Forget a tensor's edits."""
        for key in [key for key in self._places if key[0] == name]:
            del self._places[key]

    def changed(self) -> set[str]:
        """Tensors of which a chunk changes."""
        return {name for (name, _), (_, _, length) in self._places.items() if length}

    def stored(self) -> dict[str, int]:
        """Bytes of each tensor's edits."""
        total: dict[str, int] = {}
        for (name, _), (_, _, length) in self._places.items():
            total[name] = total.get(name, 0) + length
        return total

    def finish(self, manifest: Manifest) -> Patch:
        """Write the file.

        Raises:
            PatchError: the manifest says what no patch can say.
            CheckpointError: it cannot be written; what was there is untouched.
        """
        same = (SAME._replace(data=blake3(b"").digest(length=8)), 0, 0)
        order = [
            self._places.get((name, number), same) for name, count in manifest.rows().items() for number in range(count)
        ]
        rows = np.zeros(len(order), ROW)
        for row, (made, _, length) in zip(rows, order, strict=True):
            row["where"], row["what"], row["length"], row["digest"] = made.where, made.what, length, made.data
        stored, raw = encoded(manifest, self.out), rows.tobytes()
        sizes = {"manifest": len(stored), "rows": len(raw), "chunks": sum(length for _, _, length in order)}
        specs = {name: TensorSpec("U8", (size,)) for name, size in sizes.items()}
        factors = {key: spec for key, (spec, _) in self._factors.items() if key[2:] in manifest.tensors}
        header = build_header({**specs, **factors}, {KEY: VERSION, "check": check_of(stored, raw)})
        with replacing(self.out) as file:
            file.write(header.raw)
            for part in header.entries:
                if part == "chunks":
                    for _, at, length in order:
                        self._spool.seek(at)
                        file.write(self._spool.read(length))
                elif part in specs:
                    file.write(stored if part == "manifest" else raw)
                else:
                    file.write(self._factors[part][1])
        return Patch(self.out)
