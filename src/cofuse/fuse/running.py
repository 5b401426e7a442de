"""A mean that streams: models are added as they arrive, and none of them is kept."""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from ..checkpoint import Checkpoint, TensorSpec, building, open_local, replace_file, save, write_synced
from ..checkpoint.dtypes import bits
from ..checkpoint.floats import FLOATS, as_floats, as_stored
from ..errors import FuseError
from ..progress import SILENT, Progress
from .fusing import fuse

STATE = "running.json"
# Elements converted at a time, as in `fused.BLOCK`.
BLOCK = 128 * 1024


class Running:
    """The weighted mean of all models added so far, in a folder.

        m_n = m_(n-1) + w_n / (w_1 + ... + w_n) (t_n - m_(n-1))

    Each model is read once; neither memory nor the folder grows with their number. The mean is kept in float64 for
    float32 and float64 tensors and in float32 for 16-bit and 8-bit ones: twice the size of a float32 or bfloat16 model,
    and twice that while one is added. What is kept departs from the exact mean by at most n u max|t|, u = 2^-53 or
    2^-24, and by about sqrt(n) of that for models in no order; so after 1,000 models by less than 1e-4 of a value in
    bfloat16, whose own rounding is 4e-3. Their order matters as little.

    A new mean is written beside the old one and takes its place when it is safe on disk: whoever is killed, by
    whatever, leaves the mean of the models before or after, never less. Two processes may not add at once.

    Source: Welford, Note on a method for calculating corrected sums of squares and products, 1962, eq. I; with weights:
    West, Updating mean and variance estimates, 1979.

    >>> import tempfile, torch
    >>> from cofuse.checkpoint import Memory
    >>> one, three = (Memory({"x": torch.tensor([x])}) for x in (1.0, 3.0))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     running = Running.create(folder + "/mean", like=one)
    ...     running.add(one)
    ...     running.add(three, weight=3.0)
    ...     running.mean().read("x"), running.weights
    (tensor([2.5000]), (1.0, 3.0))
    """

    def __init__(self, folder: str | Path) -> None:
        """Open a mean that was created before.

        Raises:
            FuseError: there is none.
        """
        self.folder = Path(folder)
        self._load()

    @classmethod
    def create(
        cls, folder: str | Path, like: Checkpoint, *, threads: int | None = None, progress: Progress = SILENT
    ) -> Running:
        """Start a mean of no models.

        Args:
            folder: where it is kept; new or empty.
            like: gives names, shapes, dtypes, files, and the tensors that are no floats; its values count for nothing.
            threads: how many; the processor's number when None.
            progress: told of every block written.

        Raises:
            FuseError: the folder is in use, or a tensor is of a dtype that cannot be averaged.
        """
        folder = Path(folder)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise FuseError("the folder is in use", where=folder, expected="a new or empty folder")
        fuse("linear", [like])  # refuses what cannot be averaged
        dtypes = {name: like.spec(name).dtype for name in like.names()}
        with building(folder) as temporary:
            save(_Recast(like, _widened(dtypes)), temporary / _name(0), threads=threads, progress=progress)
            write_synced(temporary / STATE, _state(0, dtypes, ()))
        return cls(folder)

    @property
    def count(self) -> int:
        """How many models the mean is of."""
        return len(self.weights)

    @property
    def weights(self) -> tuple[float, ...]:
        """The weight of each of them, in the order in which they were added."""
        return self._weights

    def add(
        self, checkpoint: Checkpoint, weight: float = 1.0, *, threads: int | None = None, progress: Progress = SILENT
    ) -> None:
        """Add a model; when this returns, it is safe on disk.

        Args:
            checkpoint: of the names and shapes of `like`; float dtypes may be others. Read once.
            weight: above 0; no unit.
            threads: how many; the processor's number when None.
            progress: told of every block written.

        Raises:
            FuseError: a value is not finite, a tensor is missing, one too many or of another shape, or somebody else is
                adding; the mean is as it was.
        """
        if not (math.isfinite(weight) and weight > 0):
            raise FuseError("a weight is above 0", where=self.folder, got=weight)
        with self._alone():
            self._load()
            current = open_local(self.folder / self._current)
            new = fuse("linear", [current, checkpoint], weights=[math.fsum(self._weights), weight])
            if set(new.names()) != set(current.names()):
                more = sorted(set(new.names()) ^ set(current.names()))
                raise FuseError("other tensors than the mean's", where=checkpoint.where, got=", ".join(more[:3]))
            following = _name(self.count + 1)
            save(new, self.folder / following, threads=threads, progress=progress)
            replace_file(self.folder / STATE, _state(self.count + 1, self._dtypes, (*self._weights, weight)))
            self._load()
            self._sweep()

    def mean(self) -> Checkpoint:
        """The mean in the dtypes of `like`; lazy, and not touched by what is added later.

        Raises:
            FuseError: nothing was added yet.
        """
        self._load()
        if not self.count:
            raise FuseError("no models were added yet", where=self.folder)
        return _Recast(open_local(self.folder / self._current), self._dtypes)

    def _load(self) -> None:
        try:
            state = json.loads((self.folder / STATE).read_bytes())
            self._current = str(state["current"])
            self._dtypes = {str(k): str(v) for k, v in state["dtypes"].items()}
            self._weights = tuple(map(float, state["weights"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise FuseError(
                "no running mean here", where=self.folder, got=f"{type(error).__name__}: {error}", expected=STATE
            ) from None

    def _sweep(self) -> None:
        """Remove earlier means, and one that was written when somebody was killed."""
        for path in self.folder.glob("mean-*"):
            if path.name != self._current:
                shutil.rmtree(path, ignore_errors=True)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        # The kernel gives the lock back when its holder dies.
        fd = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            raise FuseError("somebody else is adding to this mean", where=self.folder, hint="wait for them") from None
        try:
            yield
        finally:
            os.close(fd)


class _Recast(Checkpoint):
    """A checkpoint with its floats in other dtypes, converted as they are read."""

    def __init__(self, source: Checkpoint, dtypes: Mapping[str, str]) -> None:
        self._source = source
        self._dtypes = dtypes
        self._files = dict(source.files)  # now: the folder it lies in may go, while its weights are held open
        self._metadata = source.metadata
        self._aliases = source.aliases
        self._where = source.where

    def names(self) -> tuple[str, ...]:
        return tuple(self._dtypes)

    def spec(self, name: str) -> TensorSpec:
        name = self.resolve(name)
        if name not in self._dtypes:
            raise self.missing(name)
        return TensorSpec(self._dtypes[name], self._source.spec(name).shape)

    def read_bytes(self, name: str, start: int = 0, stop: int | None = None) -> bytes | bytearray | memoryview:
        name = self.resolve(name)
        start, stop = self.check_range(name, start, stop)
        before, after = self._source.spec(name).dtype, self._dtypes[name]
        if before == after:
            return self._source.read_bytes(name, start, stop)
        # Whole elements, then the bytes that were asked for.
        wide, width = bits(before) // 8, bits(after) // 8
        first, last = start // width, -(-stop // width)
        out = np.empty((last - first) * width, np.uint8)
        for at in range(first, last, BLOCK):
            end = min(at + BLOCK, last)
            raw = np.empty((end - at) * wide, np.uint8)
            self._source.read_into(name, at * wide, raw.data)
            values = as_floats(raw, before, np.float64 if bits(before) == 64 or bits(after) == 64 else np.float32)
            stored = as_stored(values, after)
            if not (np.isfinite(values).all() and np.isfinite(as_floats(stored, after, np.float64)).all()):
                raise FuseError("a value is not finite, or not in this dtype", where=f"{self.where}: {name}", got=after)
            out[(at - first) * width : (end - first) * width] = stored
        return out[start - first * width : stop - first * width].data


def _widened(dtypes: Mapping[str, str]) -> dict[str, str]:
    """What a mean is kept in: at least 16 bits more than its models have, float64 at most."""
    return {n: d if d not in FLOATS else "F64" if bits(d) >= 32 else "F32" for n, d in dtypes.items()}


def _name(count: int) -> str:
    return f"mean-{count:06d}"


def _state(count: int, dtypes: Mapping[str, str], weights: tuple[float, ...]) -> bytes:
    return json.dumps({"current": _name(count), "dtypes": dict(dtypes), "weights": weights}).encode() + b"\n"
